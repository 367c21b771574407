"""What is looked at before a VM runs: this host, and a configuration with all that it names."""
