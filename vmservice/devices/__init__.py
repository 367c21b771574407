"""Device models that do no I/O of their own."""
