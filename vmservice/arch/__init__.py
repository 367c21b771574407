"""What is particular to a processor architecture."""
