"""A tap: the host's end of a network, one descriptor of /dev/net/tun for each of its queues (<linux/if_tun.h>).

The network namespace is that in which /dev/net/tun was opened: a descriptor that systemd passed on reaches the host's taps from
a process that sees no network. Only a tap that is there is attached: none is made, which the kernel would do for root.
"""

from __future__ import annotations

import errno
import os
import struct
from fcntl import ioctl

from vmservice.errors import ConfigError, HostError, HostFacilityMissing, NotPermitted
from vmservice.host.interfaces import look_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.host.consoles.base import Console
    from vmservice.host.vhost import VhostNet

DEVICE = "/dev/net/tun"
VHOST_DEVICE = "/dev/vhost-net"

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
TUNSETCARRIER = 0x400454E2

IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400

# What a program that is attached can take beside whole frames with their checksums (TUNSETOFFLOAD).
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08

# struct virtio_net_hdr_mrg_rxbuf, in front of each frame
HEADER_BYTES = 12

_INT = struct.Struct("<i")
_REQUEST = struct.Struct("<16sH22x")  # struct ifreq with ifr_flags

_FRAMES = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR


class TapGone(HostError):
    """There is no such tap, or none that this account may have: they look the same from another network namespace."""


class Tap:
    """The tap `name` with `queues` queues. `what` is the subject of a sentence: `network lan`.

    `tuns` are descriptors of /dev/net/tun, its own from now on; it opens them where there are none. `mtu` is what the tap had
    when they were opened, 0 where it is not known; `advice` is for whoever misses the tap. ConfigError or
    HostError, with nothing left open.

    What is set holds for a tap that is attached anew, too. Every method raises HostError where the kernel refuses.
    """

    consoles: Sequence[Console] = ()

    def __init__(self, name: str, what: str, queues: int, tuns: Sequence[int] = (), mtu: int = 0, advice: str = "") -> None:
        self.name = name
        self._advice = f"; {advice}" if advice else ""
        self.what = what
        self.mtu = mtu
        self.vhosts: list[VhostNet] = []  # one for each queue, or none
        self.queue_fds = list(tuns)
        self._is_ours = not tuns  # opened by this process, in its own namespace
        self._offload = 0
        self._pairs = queues
        self._has_carrier = True
        try:
            while len(self.queue_fds) < queues:
                self.queue_fds.append(open_device(what))
            while len(self.queue_fds) > queues:
                os.close(self.queue_fds.pop())
            for fd in self.queue_fds:
                os.set_blocking(fd, False)
            self.attach()
        except BaseException:
            self.close()
            raise

    def fds(self) -> dict[str, int]:
        found = {f"queue{number}": fd for number, fd in enumerate(self.queue_fds)}
        return {**found, **{f"vhost{number}": vhost.fd for number, vhost in enumerate(self.vhosts)}}

    def close(self) -> None:
        while self.vhosts:
            self.vhosts.pop().close()
        while self.queue_fds:
            os.close(self.queue_fds.pop())

    def take_vhosts(self, fds: Sequence[int]) -> None:
        """Have the kernel move the frames: descriptors of /dev/vhost-net, its own from now on. HostError where it does not."""
        from vmservice.host.vhost import VhostNet

        self.vhosts = [VhostNet(fd, f"the tap {self.name}", queue) for fd, queue in zip(fds, self.queue_fds, strict=True)]
        for vhost in self.vhosts:
            vhost.look()

    # There, or not

    def is_attached(self) -> bool:
        """False when the tap has been deleted since."""
        try:
            ioctl(self.queue_fds[0], TUNGETIFF, _REQUEST.pack(b"", 0))
        except OSError:
            return False
        return True

    def attach(self) -> None:
        """At a tap that is there, with all that has been set. TapGone where it is not; ConfigError where it is of no use."""
        if self._is_ours:
            self._look()
        for fd in self.queue_fds:
            self._attach_queue(fd)
        try:
            for fd in self.queue_fds:
                ioctl(fd, TUNSETVNETHDRSZ, _INT.pack(HEADER_BYTES))
            ioctl(self.queue_fds[0], TUNSETOFFLOAD, self._offload)
        except OSError as error:
            raise HostError.from_os(f"{self.what}: the tap {self.name} cannot be set up", error) from error
        pairs, self._pairs = self._pairs, len(self.queue_fds)
        self.set_pairs(pairs)
        self.set_carrier(self._has_carrier)

    def _look(self) -> None:
        """As root the kernel would make one that is missing."""
        try:
            found = look_at(self.name)
        except OSError as error:
            raise HostError.from_os(f"{self.what}: the interface {self.name} cannot be looked at", error) from error
        if found is None:
            raise TapGone(f"{self.what}: there is no tap {self.name}{self._advice}", errno.ENODEV)
        self.mtu = found.mtu

    def _attach_queue(self, fd: int) -> None:
        is_alone = len(self.queue_fds) == 1
        error = self._set_interface(fd, _FRAMES if is_alone else _FRAMES | IFF_MULTI_QUEUE)
        if error == errno.EINVAL and is_alone:
            # One queue of a tap that may have several will do.
            error = self._set_interface(fd, _FRAMES | IFF_MULTI_QUEUE)
        if error:
            raise self._refusal(fd, error)

    def _set_interface(self, fd: int, flags: int) -> int:
        """0, or the errno."""
        try:
            ioctl(fd, TUNSETIFF, _REQUEST.pack(self.name.encode(), flags))
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _refusal(self, fd: int, number: int) -> ConfigError | HostError:
        tap = f"{self.what}: the tap {self.name}"
        from vmservice.host.accounts import own_name

        who = own_name()
        if number == errno.EPERM and (self._is_ours or self.mtu):
            return NotPermitted(f"{tap} belongs to another account; expected {who}, which runs this VM", number)
        if number == errno.EPERM:
            return TapGone(f"{tap} is not there, or does not belong to {who}, which runs this VM{self._advice}", number)
        if number == errno.EBUSY:
            return HostError(f"{tap} is in use by another program; it has one queue, which one program can have", number)
        if number == errno.E2BIG:
            return HostError(f"{tap} has no queue left; other programs have them", number)
        if number == errno.EINVAL:
            return self._wrong_kind(fd)
        return HostError(f"{tap} cannot be attached: {os.strerror(number)} (errno {number})", number)

    def _wrong_kind(self, fd: int) -> ConfigError:
        for kind in (0, IFF_MULTI_QUEUE):
            if self._set_interface(fd, IFF_TUN | IFF_NO_PI | kind) != errno.EINVAL:
                return ConfigError(f"{self.what}: {self.name} is a tun device, which carries packets; expected a tap")
        if len(self.queue_fds) > 1 and self._set_interface(fd, _FRAMES) != errno.EINVAL:
            return ConfigError(
                f"{self.what}: the tap {self.name} has one queue, and queues is {len(self.queue_fds)}; expected 1, or a tap"
                " with more, which is made with MultiQueue=yes, or by `ip tuntap add … multi_queue`"
            )
        return ConfigError(f"{self.what}: {self.name} is an interface of another kind; expected a tap")

    # What may change while it is used

    def set_offload(self, offload: int) -> None:
        """TUN_F_ bits of what the guest takes: segments that are to be cut, checksums that are to be made."""
        self._offload = offload
        self._do("cannot change what it leaves to the guest", self.queue_fds[0], TUNSETOFFLOAD, offload)

    def set_carrier(self, has_carrier: bool) -> None:
        """Whether the host sees a cable in it."""
        self._has_carrier = has_carrier
        self._do("cannot change its carrier", self.queue_fds[0], TUNSETCARRIER, _INT.pack(has_carrier))

    def set_pairs(self, pairs: int) -> None:
        """The host sends to the first `pairs` queues; nobody would take frames out of the others."""
        before, self._pairs = self._pairs, pairs
        for number in range(min(pairs, before), max(pairs, before)):
            flags = IFF_ATTACH_QUEUE if number < pairs else IFF_DETACH_QUEUE
            self._do("cannot change its queues", self.queue_fds[number], TUNSETQUEUE, _REQUEST.pack(b"", flags))

    def _do(self, what: str, fd: int, request: int, argument: bytes | int) -> None:
        try:
            ioctl(fd, request, argument)
        except OSError as error:
            if error.errno == errno.EBADFD or not self.is_attached():
                raise TapGone(f"{self.what}: the tap {self.name} is gone", errno.ENODEV) from error
            raise HostError.from_os(f"{self.what}: the tap {self.name} {what}", error) from error


def open_device(what: str) -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        number = error.errno or 0
        if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise HostFacilityMissing(
                f"{what}: this host has no {DEVICE}; `modprobe tun` loads its module, if the kernel has it", number
            ) from error
        if number in (errno.EACCES, errno.EPERM):
            text = f"{what}: this account may not open {DEVICE} ({os.strerror(number)}); systemd's udev rules open it to all"
            raise NotPermitted(text, number) from error
        raise HostError.from_os(f"{what}: {DEVICE} cannot be opened", error) from error


def open_vhosts(queues: int) -> list[int]:
    """Descriptors of /dev/vhost-net where this process may have them; none otherwise, for what it does can be done without."""
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(VHOST_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        while fds:
            os.close(fds.pop())
    return fds
