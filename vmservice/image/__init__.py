"""What is in a disk image: its partitions, its file systems, and how the system in it is started. Nothing is mounted."""
