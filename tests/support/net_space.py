"""A network namespace of a test's own, and real taps in it: nothing of this reaches the host's network."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest

TIMEOUT_SEC = 60.0

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 0x0003
_PACKET_OUTGOING = 4
# <linux/socket.h>, <linux/if_packet.h>
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
# <linux/sockios.h>, <linux/if.h>
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 0x1
_IFF_RUNNING = 0x40

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def net_space() -> Iterator[None]:
    """The calling thread is in a namespace of its own meanwhile, with what it starts."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this machine has no taps")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        try:
            # Else each interface that comes up has something to say.
            with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
                file.write("1")
            yield
        finally:
            _check(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "network namespace")


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, timeout=30)


def make_tap(name: str, words: str = "", *, is_up: bool = True) -> None:
    ip(f"tuntap add {name} mode tap {words}")
    if is_up:
        ip(f"link set {name} up")


class Wire:
    """The host's side of an interface: frames that it sends into it, and those that come out of it."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.bind((interface, _ETH_P_ALL))
        self._interface = interface

    def wait_running(self) -> None:
        """Returns when the kernel's link watch has seen the carrier of an interface that is up. Until then, it may be a second,
        what the host sends is dropped."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while time.monotonic() < deadline:
            answer = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, struct.pack("16s24x", self._interface.encode()))
            (flags,) = struct.unpack_from("<H", answer, 16)
            if flags & _IFF_RUNNING or not flags & _IFF_UP:
                return
            time.sleep(0.001)
        raise AssertionError(f"{self._interface} has no carrier")

    def show_headers(self) -> None:
        """From now on each frame has virtio's header of 10 bytes in front: what is left to do for it."""
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self) -> bytes:
        deadline = time.monotonic() + TIMEOUT_SEC
        while time.monotonic() < deadline:
            if select.select([self._socket], [], [], 0.1)[0]:
                frame, address = self._socket.recvfrom(1 << 17)
                if address[2] != _PACKET_OUTGOING:
                    return frame
        raise AssertionError("no frame came out of the interface")

    def is_silent(self) -> bool:
        """Whether no frame of a guest's waits."""
        while select.select([self._socket], [], [], 0)[0]:
            if self._socket.recvfrom(1 << 17)[1][2] != _PACKET_OUTGOING:
                return False
        return True

    def close(self) -> None:
        self._socket.close()


def frame(number: int, size: int = 60, *, to: bytes = b"\2\0\0\0\0\1") -> bytes:
    """One of `size` bytes that tells its number, of an experimental kind (EtherType 0x88b5)."""
    return (to + b"\2\0\0\0\0\2\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b".")


def number_of(frame: bytes) -> int:
    assert frame[12:14] == b"\x88\xb5"
    return int.from_bytes(frame[14:18], "big")
