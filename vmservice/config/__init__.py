"""What the operator asked for: NAME.toml, checked once, at the door, before anything is created."""
