"""vmservice: virtual machines that are systemd services."""

__version__ = "0.1.0"
