"""`[[network]]`: a network card of the guest, eth0 and so on, at a tap of the host."""

from __future__ import annotations

from vmservice.config.names import read_device_name
from vmservice.host.machine_id import machine_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("name", "mode", "tap", "bridge", "mac", "mtu", "queues", "offload", "link")
ARRAY = True
LIVE: tuple[str, ...] = ("link", "offload")
# A reload is told to each network: its tap may have been made anew.
FOLLOWS_HOST = True
PLUG = "vmservice.plug.network"
ORDER = 45

NETWORKS_MAX = 16
QUEUES_MAX = 8
# What an Ethernet frame can have (RFC 791), and the longest that a frame's length has room for.
MTU_MIN = 68
MTU_MAX = 65535
INTERFACE_NAME_MAX = 15  # IFNAMSIZ of <linux/if.h> counts the NUL
MAC_BYTES = 6
_MULTICAST = 0x01
_LOCAL = 0x02


class NetworkDevice:
    """`mac` has 6 bytes. `mtu` is 0 for the tap's own; `link` is "up" or "down".

    `makes_tap`: the tap is made for the VM, and put into `bridge` where that is not empty; otherwise it is there before.
    """

    kind = "network"

    __slots__ = ("bridge", "link", "mac", "makes_tap", "mtu", "name", "offload", "plug", "queues", "tap")

    def __init__(
        self,
        name: str,
        mac: bytes,
        *,
        tap: str = "",
        bridge: str = "",
        makes_tap: bool = False,
        mtu: int = 0,
        queues: int = 1,
        offload: bool = True,
        link: str = "up",
        plug: str = PLUG,
    ) -> None:
        self.plug: Final = plug
        self.name: Final = name
        self.mac: Final = mac
        self.tap: Final = tap
        self.bridge: Final = bridge
        self.makes_tap: Final = makes_tap
        self.mtu: Final = mtu
        self.queues: Final = queues
        self.offload: Final = offload
        self.link: Final = link


def read(reader: TableReader, config: Config) -> tuple[NetworkDevice, ...]:
    networks: dict[str, NetworkDevice] = {}
    for number, where in enumerate(reader.several("network", NETWORKS_MAX)):
        network = _read_one(reader, where, f"network{number}", config.name)
        for other in networks.values():
            if other.name == network.name:
                raise reader.refusal(where, "name", f"a name of its own; another [[network]] is called {network.name}")
            if other.mac == network.mac:
                raise reader.refusal(where, "mac", f"an address of its own; {other.name} has {network.mac.hex(':')} already")
            if other.tap == network.tap:
                raise reader.refusal(where, "tap", f"a tap of its own; {other.name} has {network.tap} already")
        networks[network.name] = network
    return tuple(networks.values())


def _read_one(reader: TableReader, where: str, default_name: str, vm_name: str) -> NetworkDevice:
    name = read_device_name(reader, where, default_name)
    if reader.text(where, "mode", "tap") != "tap":
        raise reader.refusal(where, "mode", '"tap"')
    tap, bridge = _interface(reader, where, "tap"), _interface(reader, where, "bridge")
    return NetworkDevice(
        name,
        _mac(reader, where, vm_name, name),
        tap=tap or default_tap(vm_name, name),
        bridge=bridge,
        makes_tap=bool(bridge) or not tap,
        mtu=reader.integer(where, "mtu", MTU_MIN, MTU_MAX, 0),
        queues=reader.integer(where, "queues", 1, QUEUES_MAX, 1),
        offload=reader.boolean(where, "offload", True),
        link=reader.choice(where, "link", ("up", "down"), "up"),
    )


def _interface(reader: TableReader, where: str, key: str) -> str:
    """The name of an interface as Linux takes it (dev_valid_name); empty where there is none."""
    name = reader.text(where, key, "")
    plain = name.isascii() and name.isprintable() and not any(letter in " /:%" for letter in name)
    if len(name) > INTERFACE_NAME_MAX or not plain or name in (".", ".."):
        raise reader.refusal(
            where, key, f"the name of an interface, up to {INTERFACE_NAME_MAX} characters without / : % and spaces"
        )
    return name


def _mac(reader: TableReader, where: str, vm_name: str, device: str) -> bytes:
    text = reader.text(where, "mac", "")
    if not text:
        return default_mac(vm_name, device)
    parts = text.split(":")
    digits = "0123456789abcdefABCDEF"
    if len(parts) != MAC_BYTES or not all(len(part) == 2 and part[0] in digits and part[1] in digits for part in parts):
        raise reader.refusal(where, "mac", 'six bytes as in "02:00:5e:00:53:01"')
    mac = bytes.fromhex("".join(parts))
    if mac[0] & _MULTICAST:
        raise reader.refusal(where, "mac", "an address of one station: a multicast address, with an odd first byte, is none")
    if not any(mac):
        raise reader.refusal(where, "mac", "an address that is not all zeros")
    return mac


def default_mac(vm_name: str, device: str) -> bytes:
    """Locally administered, and the same at each start: it follows from this host's machine id and both names."""
    digest = _digest(vm_name, device)
    return bytes((digest[0] & ~_MULTICAST & 0xFF | _LOCAL, *digest[1:MAC_BYTES]))


def default_tap(vm_name: str, device: str) -> str:
    """The tap that is made where none is named; networkd's own settings for machines (80-vm-vt.network) go by its `vt-`."""
    shown = "".join(letter if letter.isalnum() else "-" for letter in vm_name[:7])
    return f"vt-{shown}-{_digest(vm_name, device)[-2:].hex()}"


def _digest(vm_name: str, device: str) -> bytes:
    # `hashlib` takes milliseconds to be imported, and this is wanted before the guest runs.
    from _sha1 import sha1  # type: ignore[import-not-found]

    named = b"\0".join((machine_id() or b"", vm_name.encode(), device.encode()))
    return bytes(sha1(named, usedforsecurity=False).digest())


def check_files(device: NetworkDevice, path: str) -> None:
    from vmservice.host.interfaces import check_bridge, check_tap

    what = f"{path}: network {device.name}"
    if not device.makes_tap:
        check_tap(device.tap, what, device.mtu)
    elif device.bridge:
        check_bridge(device.bridge, what)
