"""What the operator asked for: NAME.toml, checked once, before anything is created."""
