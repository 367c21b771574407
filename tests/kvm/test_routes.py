"""The routing table and messages on the real KVM: what it takes, from several threads at once."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import pytest
from support.kvm_guest import needs_kvm
from support.local_apic import Processor

from vmservice.arch.x86_64 import layout
from vmservice.errors import KvmError
from vmservice.kvm import ioctl

pytestmark = [pytest.mark.kvm, needs_kvm]

ADDRESS = 0xFEE00000
NOBODY = ADDRESS | 7 << 12
GSI = layout.IOAPIC_PINS
GSI_BEYOND_KVM = 1 << 20


@pytest.fixture
def processor() -> Iterator[Processor]:
    processor = Processor()
    yield processor
    processor.close()


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def arrives(processor: Processor, gsi: int) -> list[int]:
    """The vectors that are there after a write to an eventfd of `gsi`."""
    fd = os.eventfd(0)
    try:
        processor.vm.attach_eventfd(fd, gsi)
        os.eventfd_write(fd, 1)
        return processor.requests()
    finally:
        os.close(fd)


def test_a_message_to_a_local_apic_that_is_off_is_taken_by_nobody() -> None:
    processor = Processor(enabled=False)
    try:
        assert processor.vm.signal_msi(ADDRESS, 0x41) <= 0
    finally:
        processor.close()


@pytest.mark.usefixtures("busy_threads")
def test_messages_from_several_threads_are_not_mixed_up(processor: Processor) -> None:
    """With one buffer for all, a thread sends another's vector to another's address."""
    taken: list[int] = []
    lost: list[int] = []

    def send(address: int, vector: int, results: list[int]) -> None:
        for _ in range(8000):
            results.append(processor.vm.signal_msi(address, vector))

    threads = [
        threading.Thread(target=send, args=arguments)
        for arguments in ((ADDRESS, 0x41, taken), (NOBODY, 0x42, lost), (NOBODY, 0x43, lost))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(taken) == {1}
    assert max(lost) <= 0
    assert processor.requests() == [0x41]


def test_a_route_that_is_removed_is_gone_and_others_stay(processor: Processor) -> None:
    routes = processor.vm.routes
    routes.set_message(GSI, (ADDRESS, 0x41))
    routes.set_message(GSI + 1, (ADDRESS, 0x42))
    routes.remove(GSI)
    routes.remove(GSI)
    assert arrives(processor, GSI) == []
    assert arrives(processor, GSI + 1) == [0x42]
    routes.remove(GSI + 1)
    routes.set_pins([(ADDRESS, 0x51)])
    routes.set_pins([None])
    assert arrives(processor, 0) == [0x42]


def test_a_refused_table_leaves_the_one_before(processor: Processor) -> None:
    routes = processor.vm.routes
    routes.set_message(GSI, (ADDRESS, 0x41))
    with pytest.raises(KvmError, match=r"^KVM_SET_GSI_ROUTING failed"):
        routes.set_message(GSI_BEYOND_KVM, (ADDRESS, 0x42))
    with pytest.raises(KvmError, match=r"^KVM_SET_GSI_ROUTING failed"):
        routes.set_pins([None] * GSI_BEYOND_KVM + [(ADDRESS, 0x43)])
    routes.set_message(GSI + 1, (ADDRESS, 0x44))
    assert arrives(processor, GSI) == [0x41]


def test_an_older_table_is_never_told_last(processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM takes a table as a whole. One thread is held on its way to KVM, until another was there, were it not for the lock."""
    routes, call = processor.vm.routes, ioctl.call
    on_its_way, other_was_there = threading.Event(), threading.Event()

    def slow_call(fd: int, request: int, argument: int | ctypes.Array[ctypes.c_char], *, name: str) -> int:
        if on_its_way.is_set():
            result = call(fd, request, argument, name=name)
            other_was_there.set()
            return result
        on_its_way.set()
        other_was_there.wait(0.3)
        return call(fd, request, argument, name=name)

    monkeypatch.setattr(ioctl, "call", slow_call)
    first = threading.Thread(target=routes.set_message, args=(GSI, (ADDRESS, 0x41)))
    first.start()
    assert on_its_way.wait(10)
    routes.set_message(GSI + 1, (ADDRESS, 0x42))
    first.join()
    monkeypatch.undo()
    assert arrives(processor, GSI) == [0x41]
    assert arrives(processor, GSI + 1) == [0x41, 0x42]
