"""One object for all VMs of a host or of a user: which there are, and how each does. It changes none of them."""
