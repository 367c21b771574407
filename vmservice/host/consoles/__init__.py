"""The host's ends of a guest's consoles and ports: a module a kind, and `open.py`, which chooses."""
