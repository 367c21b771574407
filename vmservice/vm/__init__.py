"""A virtual machine: its state, its parts, its threads."""
