"""The process that systemd runs: readiness, signals, journal."""
