"""vmservice: virtual machines that are systemd services."""
