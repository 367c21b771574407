"""virtio (1.2, split rings): the virtqueue, the transports' common part, MMIO, and one file a device."""
