"""Message-signalled interrupts by eventfd on the real KVM: what a write to one does to a local APIC."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from support.kvm_guest import needs_kvm

from vmservice.arch.x86_64 import layout
from vmservice.board.message_interrupts import MessageInterrupts
from vmservice.errors import KvmError
from vmservice.kvm import abi
from vmservice.kvm.system import Kvm
from vmservice.kvm.vcpu import KvmVcpu
from vmservice.kvm.vm import KvmVm

pytestmark = [pytest.mark.kvm, needs_kvm]

ADDRESS = 0xFEE00000
GSI = layout.IOAPIC_PINS

# Registers of a local APIC (Intel SDM vol. 3, 11.4.1)
SPURIOUS, SOFTWARE_ENABLE = 0xF0, 0x1FF
REQUESTS = 0x200


class Processor:
    """A VM with a split irqchip, and one vCPU that never runs: its local APIC keeps each vector that has come."""

    def __init__(self) -> None:
        self.kvm = Kvm()
        self.vm: KvmVm = self.kvm.create_vm()
        self.vm.enable_split_irqchip(layout.IOAPIC_PINS)
        self.vcpu: KvmVcpu = self.vm.create_vcpu(0)
        state = self.vcpu.lapic()
        state.regs[SPURIOUS : SPURIOUS + 2] = list(SOFTWARE_ENABLE.to_bytes(2, "little"))
        self.vcpu.set_lapic(state)

    def requests(self) -> list[int]:
        registers = bytes(self.vcpu.lapic().regs)
        words = [registers[REQUESTS + 16 * word : REQUESTS + 16 * word + 4] for word in range(8)]
        bits = int.from_bytes(b"".join(words), "little")
        return [vector for vector in range(256) if bits >> vector & 1]

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()


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


def test_a_write_is_an_interrupt(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(3, ADDRESS, 0x42, False)
    assert processor.requests() == []
    interrupts.signal(3)
    assert processor.requests() == [0x42]
    os.eventfd_write(interrupts.eventfd(0), 1)
    assert processor.requests() == [0x41, 0x42]


def test_a_mask_holds_back_what_a_back_end_writes(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(0, ADDRESS, 0x41, True)
    os.eventfd_write(interrupts.eventfd(0), 1)
    assert processor.requests() == []
    interrupts.on_route_changed(0, ADDRESS, 0x51, True)
    interrupts.on_route_changed(0, ADDRESS, 0x51, False)
    # What an eventfd holds when it is attached KVM delivers by its own worker (virt/kvm/eventfd.c, irqfd_inject).
    deadline = time.monotonic() + 10
    while not processor.requests() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert processor.requests() == [0x51]


def test_a_new_message_while_it_is_open(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(0, ADDRESS, 0x61, False)
    interrupts.signal(0)
    assert processor.requests() == [0x61]


def test_routes_of_pins_and_of_messages_do_not_replace_each_other(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    processor.vm.routes.set_pins([None] * 4 + [(ADDRESS, 0x30)])
    interrupts.on_route_changed(1, ADDRESS, 0x42, False)
    with_pin = MessageInterrupts(processor.vm, 4, pytest.fail)
    processor.vm.attach_eventfd(with_pin.eventfd(0), 4)
    os.eventfd_write(with_pin.eventfd(0), 1)
    interrupts.signal(0)
    interrupts.signal(1)
    assert processor.requests() == [0x30, 0x41, 0x42]
    with_pin.close()


def test_a_message_says_whether_a_vcpu_took_it(processor: Processor) -> None:
    assert processor.vm.signal_msi(ADDRESS, 0x41) > 0
    assert processor.vm.signal_msi(ADDRESS, 0x41) > 0, "it is waiting there already"
    assert processor.vm.signal_msi(ADDRESS | 0x77 << 12, 0x41) <= 0, "there is no vCPU with that APIC id"
    assert processor.requests() == [0x41]


def test_a_route_that_is_gone_interrupts_no_more(processor: Processor, interrupts: MessageInterrupts) -> None:
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    interrupts.on_route_changed(1, ADDRESS, 0x42, False)
    processor.vm.routes.remove(GSI)
    interrupts.signal(0)
    interrupts.signal(1)
    assert processor.requests() == [0x42]


def test_a_closed_eventfd_is_detached(processor: Processor, interrupts: MessageInterrupts) -> None:
    """KVM lets go of it by itself, so that closing needs no VM."""
    for _ in range(50):
        interrupts.on_route_changed(0, ADDRESS, 0x41, False)
        interrupts.close()
    interrupts.on_route_changed(0, ADDRESS, 0x41, False)
    with pytest.raises(KvmError, match=r"^KVM_IRQFD failed"):
        processor.vm.attach_eventfd(interrupts.eventfd(0), GSI)
