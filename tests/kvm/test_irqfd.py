"""Message-signalled interrupts by eventfd on the real KVM: what a write to one does to a local APIC."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.kvm_guest import needs_kvm, wait_until
from support.local_apic import Processor

from vmservice.arch.x86_64 import layout
from vmservice.board.message_interrupts import MessageInterrupts
from vmservice.errors import KvmError
from vmservice.kvm import abi

pytestmark = [pytest.mark.kvm, needs_kvm]

ADDRESS = 0xFEE00000
GSI = layout.IOAPIC_PINS


@pytest.fixture
def processor() -> Iterator[Processor]:
    processor = Processor()
    if not (processor.kvm.extension(abi.KVM_CAP_IRQFD) and processor.kvm.extension(abi.KVM_CAP_IRQ_ROUTING)):
        pytest.fail("this KVM has neither irqfd nor interrupt routing, which every one since Linux 2.6.32 has")
    yield processor
    processor.close()


@pytest.fixture
def interrupts(processor: Processor) -> Iterator[MessageInterrupts]:
    def warn(text: str) -> None:
        raise AssertionError(text)

    interrupts = MessageInterrupts(processor.vm, GSI, warn)
    yield interrupts
    interrupts.close()


def expect(processor: Processor, vectors: list[int]) -> None:
    """KVM delivers by its own worker where it cannot at once, as for an eventfd that was written to before it was attached
    (virt/kvm/eventfd.c, irqfd_inject).
    """
    wait_until(lambda: processor.requests() == vectors or None, f"there are not the interrupts {vectors}")


def test_a_write_is_an_interrupt(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(3, ADDRESS, 0x42, False)
    assert processor.requests() == []
    interrupts.signal(3)
    expect(processor, [0x42])
    os.eventfd_write(interrupts.eventfd(0), 1)
    expect(processor, [0x41, 0x42])


def test_a_mask_holds_back_what_a_back_end_writes(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(0, ADDRESS, 0x41, True)
    os.eventfd_write(interrupts.eventfd(0), 1)
    assert processor.requests() == []
    interrupts.on_route_changed(0, ADDRESS, 0x51, True)
    interrupts.on_route_changed(0, ADDRESS, 0x51, False)
    expect(processor, [0x51])


def test_a_new_message_while_it_is_open(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(0, ADDRESS, 0x61, False)
    interrupts.signal(0)
    expect(processor, [0x61])


def test_routes_of_pins_and_of_messages_do_not_replace_each_other(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    processor.vm.routes.set_pins([None] * 4 + [(ADDRESS, 0x30)])
    interrupts.on_route_changed(1, ADDRESS, 0x42, False)
    with_pin = MessageInterrupts(processor.vm, 4, pytest.fail)
    processor.vm.attach_eventfd(with_pin.eventfd(0), 4)
    os.eventfd_write(with_pin.eventfd(0), 1)
    interrupts.signal(0)
    interrupts.signal(1)
    expect(processor, [0x30, 0x41, 0x42])
    with_pin.close()


def test_a_message_says_whether_a_vcpu_took_it(processor: Processor) -> None:
    assert processor.vm.signal_msi(ADDRESS, 0x41) > 0
    assert processor.vm.signal_msi(ADDRESS, 0x41) > 0, "it is waiting there already"
    assert processor.vm.signal_msi(ADDRESS | 0x77 << 12, 0x41) <= 0, "there is no vCPU with that APIC id"
    expect(processor, [0x41])


def test_a_route_that_is_gone_interrupts_no_more(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(1, ADDRESS, 0x42, False)
    processor.vm.routes.remove(GSI)
    interrupts.signal(0)
    interrupts.signal(1)
    expect(processor, [0x42])


def test_a_closed_eventfd_is_detached(processor: Processor, interrupts: MessageInterrupts) -> None:
    """KVM lets go of it by itself, so that closing needs no VM."""
    for _ in range(50):
        interrupts.on_route_changed(0, ADDRESS, 0x41, False)
        interrupts.close()
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    with pytest.raises(KvmError, match=r"^KVM_IRQFD failed"):
        processor.vm.attach_eventfd(interrupts.eventfd(0), GSI)
