"""The numbers of virtio that belong to no one device: device types, and the feature bits of all devices."""

from __future__ import annotations

# Device types (virtio 1.2 §5)
TYPE_NET = 1
TYPE_BLOCK = 2
TYPE_CONSOLE = 3
TYPE_ENTROPY = 4
TYPE_BALLOON = 5
TYPE_VSOCK = 19
TYPE_PMEM = 27

# Feature bits of all devices (virtio 1.2 §6)
INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
