"""A tap made for a VM, by somebody who may: named, owned by the VM's account, in a bridge; and removed at the end.

By ioctls of <linux/if_tun.h> and <linux/sockios.h>, and one message of rtnetlink(7).
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from fcntl import ioctl

from vmservice.errors import HostError
from vmservice.host.interfaces import IFF_UP, SIOCGIFFLAGS, look_at
from vmservice.host.tap import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF, open_device

TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
SIOCSIFFLAGS = 0x8914
SIOCSIFMTU = 0x8922
SIOCSIFHWADDR = 0x8924
SIOCGIFINDEX = 0x8933
SIOCBRADDIF = 0x89A2
ARPHRD_ETHER = 1

NETLINK_ROUTE = 0
RTM_DELLINK = 17
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4

# struct ifreq: the name, and what the request is about
_FLAGS = struct.Struct("<16sH22x")
_INT = struct.Struct("<16si20x")
_ANSWER = struct.Struct("<16xi")
_ADDRESS = struct.Struct("<16sH6s16x")
_NLMSGHDR = struct.Struct("<IHHII")
_IFINFOMSG = struct.Struct("<BxHiII")

# The host's end has the guest's address with this first byte, the highest there is: a bridge does not take it for its own.
_FIRST_BYTE = b"\xfe"


def make(name: str, what: str, *, uid: int, queues: int, mac: bytes, bridge: str = "", mtu: int = 0) -> None:
    """The tap, up, for the account `uid`. HostError with nothing left behind. One that nobody uses is removed first.

    `mac` is the guest's. `mtu` is 0 for the bridge's, or what taps have.
    """
    if bridge:
        mtu = mtu or _bridge_mtu(bridge, what)
    fd = open_device(what)
    try:
        if look_at(name) is not None:
            _check_unused(name, what)
            remove(name, what)
        _do(what, name, "made", fd, TUNSETIFF, _FLAGS.pack(name.encode(), _kind(queues)))
        _do(what, name, "given to the VM's account", fd, TUNSETOWNER, uid)
        asker = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            _set_up(asker.fileno(), name, what, mac=mac, bridge=bridge, mtu=mtu)
        finally:
            asker.close()
        _do(what, name, "kept", fd, TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def _check_unused(name: str, what: str) -> None:
    """Of a tap with several queues nobody can say."""
    fd = open_device(what)
    try:
        ioctl(fd, TUNSETIFF, _FLAGS.pack(name.encode(), _kind(1)))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HostError(f"{what}: there is a tap {name} already, and another program uses it", errno.EBUSY) from None
    finally:
        os.close(fd)


def _kind(queues: int) -> int:
    return IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)


def _set_up(asker: int, name: str, what: str, *, mac: bytes, bridge: str, mtu: int) -> None:
    word = name.encode()
    _do(what, name, "given an address", asker, SIOCSIFHWADDR, _ADDRESS.pack(word, ARPHRD_ETHER, _FIRST_BYTE + mac[1:]))
    if mtu:
        _do(what, name, f"given an MTU of {mtu}", asker, SIOCSIFMTU, _INT.pack(word, mtu))
    if bridge:
        (index,) = _ANSWER.unpack_from(_do(what, name, "looked at", asker, SIOCGIFINDEX, _INT.pack(word, 0)))
        _do(what, name, f"put into the bridge {bridge}", asker, SIOCBRADDIF, _INT.pack(bridge.encode(), index))
    (flags,) = struct.unpack_from("<16xH", _do(what, name, "looked at", asker, SIOCGIFFLAGS, _FLAGS.pack(word, 0)))
    _do(what, name, "brought up", asker, SIOCSIFFLAGS, _FLAGS.pack(word, flags | IFF_UP))


def _bridge_mtu(bridge: str, what: str) -> int:
    found = look_at(bridge)
    if found is None:
        raise HostError(f"{what}: there is no bridge {bridge}", errno.ENODEV)
    if found.driver != "bridge":
        raise HostError(f"{what}: {bridge} is no bridge", errno.EOPNOTSUPP)
    return found.mtu


def _do(what: str, name: str, verb: str, fd: int, request: int, argument: bytes | int) -> bytes:
    try:
        done = ioctl(fd, request, argument)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise HostError(f"{what}: there is no interface {name}", errno.ENODEV) from error
        raise HostError.from_os(f"{what}: {name} cannot be {verb}", error) from error
    return done if isinstance(done, bytes) else b""


def remove(name: str, what: str) -> None:
    """Nothing where there is none; HostError where it is no tap."""
    found = look_at(name)
    if found is None:
        return
    if (found.driver, found.bus) != ("tun", "tap"):
        raise HostError(f"{what}: there is an interface {name} already, and it is no tap")
    socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_ROUTE)
    try:
        request = _INT.pack(name.encode(), 0)
        (index,) = _ANSWER.unpack_from(ioctl(socket, SIOCGIFINDEX, request))
        length = _NLMSGHDR.size + _IFINFOMSG.size
        header = _NLMSGHDR.pack(length, RTM_DELLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
        socket.send(header + _IFINFOMSG.pack(0, 0, index, 0, 0))
        number = -_ANSWER.unpack_from(socket.recv(4096))[0]
    except OSError as error:
        number = error.errno or errno.EIO
    finally:
        socket.close()
    if number not in (0, errno.ENODEV):
        raise HostError(f"{what}: the tap {name} cannot be removed: {os.strerror(number)} (errno {number})", number)
