"""The only package that issues KVM ioctls."""
