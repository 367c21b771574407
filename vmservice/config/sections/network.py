"""`[[network]]`: a network card of the guest, eth0 and so on, at a tap of the host or served by passt."""

from __future__ import annotations

from vmservice.config.core import check_shared
from vmservice.config.names import config_path, read_device_name
from vmservice.errors import ConfigError, HostFacilityMissing
from vmservice.host.machine_id import machine_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("name", "mode", "tap", "bridge", "mac", "mtu", "queues", "offload", "link", "forward")
ARRAY = True
LIVE: tuple[str, ...] = ("link", "offload")
# A reload is told to each network: its tap may have been made anew.
FOLLOWS_HOST = True
PLUG = "vmservice.plug.network"
PASST_PLUG = "vmservice.plug.passt"
ORDER = 45

NETWORKS_MAX = 16
QUEUES_MAX = 8
# What an Ethernet frame can have (RFC 791), and the longest that a frame's length has room for.
MTU_MIN = 68
MTU_MAX = 65535
# What passt tells guests of, unless told otherwise: without offloads, large frames are what makes it fast.
PASST_MTU = 65520
# What is left of the 107 bytes of a socket's path in /run, or in a user's runtime directory.
PASST_NAMES_MAX = 69
INTERFACE_NAME_MAX = 15  # IFNAMSIZ of <linux/if.h> counts the NUL
MAC_BYTES = 6
_MULTICAST = 0x01
_LOCAL = 0x02


class NetworkDevice:
    """`mac` has 6 bytes. `mtu` is 0 for the tap's own; `link` is "up" or "down". `forward` are entries as `config/forward.py`
    reads them, and `tap` is empty, where passt serves it.

    `makes_tap`: the tap is made for the VM, and put into `bridge` where that is not empty; otherwise it is there before.
    """

    kind = "network"

    __slots__ = ("bridge", "forward", "link", "mac", "makes_tap", "mtu", "name", "offload", "plug", "queues", "tap")

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
        forward: tuple[str, ...] = (),
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
        self.forward: Final = forward


def read(reader: TableReader, config: Config) -> tuple[NetworkDevice, ...]:
    networks: list[NetworkDevice] = []
    forwarded: set[tuple[str, int]] = set()
    for number, where in enumerate(reader.several("network", NETWORKS_MAX)):
        name = read_device_name(reader, where, f"network{number}")
        if _mode(reader, where, config) == "passt":
            network = _read_passt(reader, where, name, config, forwarded)
        else:
            network = _read_tap(reader, where, name, config)
        # Of two with one name, that is what is wrong: whoever asked for this says so. Addresses and taps follow from it.
        for other in (one for one in networks if one.name != network.name):
            if other.mac == network.mac:
                reader.refuse(where, "mac", f"an address of its own; {other.name} has {network.mac.hex(':')} already")
            if other.tap == network.tap != "":
                reader.refuse(where, "tap", f"a tap of its own; {other.name} has {network.tap} already")
        networks.append(network)
    return tuple(networks)


def _is_users(config: Config) -> bool:
    """Whether the VM is a user's own, from where its configuration is."""
    return config.path == config_path(config.name, user=True)


def _mode(reader: TableReader, where: str, config: Config) -> str:
    """passt is what a user's own VM has, for it takes no privilege, unless there is something for a tap."""
    is_users = _is_users(config)
    named = reader.text(where, "tap", "") or reader.text(where, "bridge", "")
    return reader.choice(where, "mode", ("tap", "passt"), "passt" if is_users and not named else "tap")


def _read_passt(reader: TableReader, where: str, name: str, config: Config, forwarded: set[tuple[str, int]]) -> NetworkDevice:
    from vmservice.config.forward import read_forwards

    for key, nothing in (("tap", ""), ("bridge", "")):
        if reader.text(where, key, nothing):
            reader.refuse(where, key, 'none with mode = "passt"', [f"{where}.mode"])
    if reader.integer(where, "queues", 1, QUEUES_MAX, 1) != 1:
        reader.refuse(where, "queues", '1 with mode = "passt", which has one pair of virtqueues')
    check_shared(reader, config.memory, f"for passt serves the network {name}, and maps the memory")
    if len(config.name) + len(name) > PASST_NAMES_MAX:
        reader.refuse(
            where, "name", f"at most {PASST_NAMES_MAX - len(config.name)} letters: with the VM's they are the path of a socket"
        )
    return NetworkDevice(
        name,
        _mac(reader, where, config.name, name),
        mtu=reader.integer(where, "mtu", MTU_MIN, PASST_MTU, PASST_MTU),
        offload=reader.boolean(where, "offload", True),
        link=reader.choice(where, "link", ("up", "down"), "up"),
        forward=read_forwards(reader, where, forwarded),
        plug=PASST_PLUG,
    )


def _read_tap(reader: TableReader, where: str, name: str, config: Config) -> NetworkDevice:
    if reader.texts(where, "forward"):
        expected = 'none with mode = "tap": the guest has an address that others reach'
        reader.refuse(where, "forward", expected, [f"{where}.mode"])
    tap, bridge = _interface(reader, where, "tap"), _interface(reader, where, "bridge")
    if _is_users(config) and bridge:
        reader.refuse(where, "bridge", "none in a user's own VM: taps are made for VMs of the system only")
    elif _is_users(config) and not tap:
        expected = "one that is there: taps are made for VMs of the system only"
        reader.refuse(where, "tap", expected, [f"{where}.mode"])
    return NetworkDevice(
        name,
        _mac(reader, where, config.name, name),
        tap=tap or default_tap(config.name, name, is_bridged=bool(bridge)),
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
        expected = f"the name of an interface, up to {INTERFACE_NAME_MAX} characters without / : % and spaces"
        reader.refuse(where, key, expected)
        return ""
    return name


def _mac(reader: TableReader, where: str, vm_name: str, device: str) -> bytes:
    text = reader.text(where, "mac", "")
    if not text:
        return default_mac(vm_name, device)
    parts = text.split(":")
    digits = "0123456789abcdefABCDEF"
    if len(parts) != MAC_BYTES or not all(len(part) == 2 and part[0] in digits and part[1] in digits for part in parts):
        reader.refuse(where, "mac", 'six bytes as in "02:00:5e:00:53:01"')
        return default_mac(vm_name, device)
    mac = bytes.fromhex("".join(parts))
    if mac[0] & _MULTICAST:
        reader.refuse(where, "mac", "an address of one station: a multicast address, with an odd first byte, is none")
    if not any(mac):
        reader.refuse(where, "mac", "an address that is not all zeros")
    return mac


def default_mac(vm_name: str, device: str) -> bytes:
    """Locally administered, and the same at each start: it follows from this host's machine id and both names."""
    digest = _digest(vm_name, device)
    return bytes((digest[0] & ~_MULTICAST & 0xFF | _LOCAL, *digest[1:MAC_BYTES]))


def default_tap(vm_name: str, device: str, *, is_bridged: bool = False) -> str:
    """The tap that is made where none is named.

    systemd-networkd's own settings for machines, 80-vm-vt.network, go by `vt-`, and would take a tap out of its bridge.
    """
    shown = "".join(letter if letter.isalnum() else "-" for letter in vm_name[:7])
    return f"{'vb' if is_bridged else 'vt'}-{shown}-{_digest(vm_name, device)[-2:].hex()}"


def _digest(vm_name: str, device: str) -> bytes:
    # `hashlib` takes milliseconds to be imported, and this is wanted before the guest runs.
    from _sha1 import sha1  # type: ignore[import-not-found]

    named = b"\0".join((machine_id() or b"", vm_name.encode(), device.encode()))
    return bytes(sha1(named, usedforsecurity=False).digest())


def check_files(device: NetworkDevice, path: str) -> None:
    from vmservice.host.interfaces import check_bridge, check_tap

    what = f"{path}: network {device.name}"
    if device.plug == PASST_PLUG:
        from vmservice.host.passt import find_passt

        try:
            find_passt(device.name)
        except HostFacilityMissing as error:
            raise ConfigError(f"{path}: {error}") from None
    elif not device.makes_tap:
        check_tap(device.tap, what, device.mtu)
    elif device.bridge:
        check_bridge(device.bridge, what)
