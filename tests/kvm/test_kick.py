"""Kicks on the real /dev/kvm, by both ways into ioctl(2): the one that this Python takes, and that of Python 3.14 on."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import needs_kvm, running_guest

from vmservice.kvm import abi, ioctl

pytestmark = [pytest.mark.kvm, needs_kvm]

WAYS = {"of this Python": ioctl.bare, "ctypes": ioctl._bare_by_ctypes}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_kick_comes_back(payloads: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, way: object) -> None:
    """A guest that leaves KVM_RUN by itself now and then, and two vCPUs that never do; a reset needs SIPI, which is EAGAIN."""
    monkeypatch.setattr("vmservice.kvm.vcpu._bare_ioctl", way)
    with running_guest(payloads("smp"), vcpus=3) as guest:
        guest.output.wait_for(b"aps 2\n")
        for _ in range(300):
            guest.vm.pause()
            guest.vm.resume()
        seen = len(guest.output.data)
        guest.vm.reboot()
        guest.output.wait_for(b"aps 2\n", seen)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_refusal_is_an_oserror_of_its_kind(way: Callable[[int, int], int]) -> None:
    fd = os.open("/dev/kvm", os.O_RDWR)
    try:
        assert way(fd, abi.KVM_GET_API_VERSION) == abi.KVM_API_VERSION
        with pytest.raises(OSError) as caught:  # which one is up to KVM
            way(fd, abi.KVM_RUN)
        assert caught.value.errno != 0
    finally:
        os.close(fd)


def test_kicks_do_not_reach_the_event_loop(payloads: Callable[[str], Path]) -> None:
    """Each woke the loop, and thousands filled the socket by which it hears of signals: a SIGTERM could be lost among them."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        with running_guest(payloads("smp"), vcpus=2) as guest:
            for _ in range(50):
                guest.vm.pause()
                guest.vm.resume()
        with pytest.raises(BlockingIOError):
            reader.recv(1)
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
