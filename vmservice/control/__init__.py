"""What a controller may ask, and the D-Bus object that it asks."""
