"""The host bridge at 00:00.0: the function by which a guest recognises that there is a PCI bus at all.

Linux, and anything else that probes the configuration mechanism, looks for a host bridge before it believes in a bus. It has
nothing but its header; the identity is the one that Cloud Hypervisor gives its own.
"""

from __future__ import annotations

from vmservice.devices.pci.function import Identity, PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.devices.pci.config_space import ConfigSpaceState

VENDOR_INTEL = 0x8086
DEVICE_VIRTUAL_HOST_BRIDGE = 0x0D57
CLASS_HOST_BRIDGE = 0x06_00_00


def host_bridge(state: ConfigSpaceState | None = None) -> PciFunction:
    identity = Identity(VENDOR_INTEL, DEVICE_VIRTUAL_HOST_BRIDGE, CLASS_HOST_BRIDGE)
    return PciFunction(identity, config_state=state)
