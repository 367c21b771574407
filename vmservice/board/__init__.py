"""What devices are plugged into: buses, interrupt lines, slots, timers."""
