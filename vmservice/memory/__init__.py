"""Guest memory by guest physical address, and what backs it."""
