"""Network interfaces, as one may ask about them without any right: whether they are there, their kind, their MTU.

The questions are ioctls of <linux/sockios.h>, which every socket takes, a UNIX one too. They are about the network namespace of
this process.
"""

from __future__ import annotations

import _socket
import errno
import struct
from fcntl import ioctl

from vmservice.errors import ConfigError

SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
SIOCETHTOOL = 0x8946
ETHTOOL_GDRVINFO = 0x3
IFF_UP = 0x1

# struct ifreq: the name, and 24 bytes of which the answer is a part
_REQUEST = struct.Struct("<16s24x")
_FLAGS = struct.Struct("<16xH")
_MTU = struct.Struct("<16xi")
_DATA = struct.Struct("<16sQ16x")
# struct ethtool_drvinfo: cmd, driver, version, fw_version, bus_info, the rest
_DRVINFO = struct.Struct("<I32s32s32s32s64x")

LOOPBACK_ONLY = ["lo"]


class Interface:
    """What there is to know of one: `driver` is the kernel's word, "tun" of a tap too, whose `bus` is "tap"."""

    __slots__ = ("bus", "driver", "is_up", "mtu", "name")

    def __init__(self, name: str, *, driver: str = "", bus: str = "", is_up: bool = False, mtu: int = 0) -> None:
        self.name = name
        self.driver = driver
        self.bus = bus
        self.is_up = is_up
        self.mtu = mtu


def look_at(name: str) -> Interface | None:
    """The interface of that name, None where there is none. OSError when that cannot be had."""
    asker = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        request = _REQUEST.pack(name.encode())
        (flags,) = _FLAGS.unpack_from(ioctl(asker, SIOCGIFFLAGS, request))
        (mtu,) = _MTU.unpack_from(ioctl(asker, SIOCGIFMTU, request))
        driver, bus = _driver(asker, name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    finally:
        asker.close()
    return Interface(name, driver=driver, bus=bus, is_up=bool(flags & IFF_UP), mtu=mtu)


def _driver(asker: _socket.socket, name: str) -> tuple[str, str]:
    """Empty where the interface does not say."""
    import ctypes

    answer = ctypes.create_string_buffer(_DRVINFO.pack(ETHTOOL_GDRVINFO, b"", b"", b"", b""), _DRVINFO.size)
    try:
        ioctl(asker, SIOCETHTOOL, _DATA.pack(name.encode(), ctypes.addressof(answer)))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return "", ""
        raise
    _, driver, _, _, bus = _DRVINFO.unpack(answer.raw)
    return driver.rstrip(b"\0").decode(), bus.rstrip(b"\0").decode()


def sees_networks() -> bool:
    """Whether this process is where interfaces are: a unit with PrivateNetwork= has a loopback, or may not even ask."""
    try:
        return [name for _, name in _socket.if_nameindex()] != LOOPBACK_ONLY
    except OSError:
        return False


def check_tap(name: str, what: str, mtu: int) -> None:
    """ConfigError unless a tap of that name is there, with room for `mtu`. Nothing where no interface can be seen."""
    if not sees_networks():
        return
    found = look_at(name)
    if found is None:
        raise ConfigError(f"{what}: there is no tap {name}; `ip tuntap add` makes one, systemd-networkd does by a .netdev file")
    if found.driver != "tun" or found.bus != "tap":
        raise ConfigError(f"{what}: {name} is {_kind(found)}; expected a tap")
    if mtu > found.mtu:
        raise ConfigError(f"{what}: mtu is {mtu}, and the tap {name} has {found.mtu}; expected at most that")


def check_bridge(name: str, what: str) -> None:
    """ConfigError unless a bridge of that name is there. Nothing where no interface can be seen."""
    if not sees_networks():
        return
    found = look_at(name)
    if found is None:
        raise ConfigError(f"{what}: there is no bridge {name}; systemd-networkd makes one by a .netdev file with Kind=bridge")
    if found.driver != "bridge":
        raise ConfigError(f"{what}: {name} is {_kind(found)}; expected a bridge")


def _kind(found: Interface) -> str:
    if found.driver == "tun":
        return "a tap" if found.bus == "tap" else "a tun device, which carries packets and no frames"
    return f"an interface of the driver {found.driver}" if found.driver else "another kind of interface"
