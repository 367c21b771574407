"""The only room that issues KVM ioctls."""
