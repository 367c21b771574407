"""Memory slots and ioeventfds on the real KVM."""

from __future__ import annotations

import mmap
import os
import select
import struct
from collections.abc import Iterator

import pytest
from support.kvm_guest import needs_kvm

from vmservice.board.doorbells import Doorbells
from vmservice.errors import HostError, KvmError
from vmservice.kvm import abi, exits
from vmservice.kvm.memory_slots import MemorySlots
from vmservice.kvm.system import Kvm
from vmservice.kvm.vcpu import KvmVcpu
from vmservice.kvm.vm import KvmVm

pytestmark = [pytest.mark.kvm, needs_kvm]

PAGE = mmap.PAGESIZE
CODE = 0x1000
DATA = 0x2000


class Machine:
    """A vCPU in real mode with a page of code; `run` starts it from the beginning and tells of its exits up to the HLT."""

    def __init__(self) -> None:
        self.kvm = Kvm()
        self.vm: KvmVm = self.kvm.create_vm()
        self.page = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.vm.memory.add(CODE, self.page)
        self.vcpu: KvmVcpu = self.vm.create_vcpu(0)

    def run(self, code: bytes) -> list[int]:
        self.page[: len(code)] = code
        sregs = self.vcpu.sregs()
        sregs.cs.base = sregs.cs.selector = 0
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(abi.kvm_regs(rip=CODE, rflags=2))
        reasons: list[int] = []
        while abi.KVM_EXIT_HLT not in reasons:
            reasons.append(self.vcpu.run())
        return reasons[:-1]

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()
        self.page.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


READ = bytes.fromhex("a1 00 20 f4")  # mov ax, [0x2000]; hlt


def anonymous_page() -> mmap.mmap:
    return mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def test_a_range_comes_and_goes(machine: Machine) -> None:
    with anonymous_page() as page:
        page[:2] = b"\x34\x12"
        assert machine.run(READ) == [abi.KVM_EXIT_MMIO]
        machine.vm.memory.add(DATA, page)
        assert machine.run(READ) == []
        assert machine.vcpu.regs().rax & 0xFFFF == 0x1234
        machine.vm.memory.remove(DATA)
        assert machine.run(READ) == [abi.KVM_EXIT_MMIO]


def test_numbers_are_used_again(machine: Machine) -> None:
    with anonymous_page() as one, anonymous_page() as other:
        first = machine.vm.memory.add(0x10000, one)
        second = machine.vm.memory.add(0x20000, other)
        machine.vm.memory.remove(0x10000)
        assert machine.vm.memory.add(0x30000, one) == first
        assert len({first, second}) == 2
        machine.vm.memory.remove(0x20000)
        machine.vm.memory.remove(0x30000)
    assert len(machine.vm.memory) == 1


def test_what_kvm_refuses_changes_nothing(machine: Machine) -> None:
    with anonymous_page() as page:
        with pytest.raises(KvmError, match=r"^memory slot 1 at 0x1000: KVM_SET_USER_MEMORY_REGION failed: File exists"):
            machine.vm.memory.add(CODE, page)
        assert machine.vm.memory.add(DATA, page) == 1
        with pytest.raises(KeyError):
            machine.vm.memory.remove(0x5000)
        machine.vm.memory.remove(DATA)


def test_there_is_an_end_of_them(machine: Machine) -> None:
    few = MemorySlots(machine.vm.fd, 0)
    with anonymous_page() as page, pytest.raises(HostError, match=r"at most 0 memory slots"):
        few.add(DATA, page)


# Eventfds in place of exits

WRITES = bytes.fromhex("ba 00 05 b8 01 00 ef b8 02 00 ef f4")  # mov dx, 0x500; mov ax, 1; out dx, ax; the same with 2; hlt
WRITES_MMIO = bytes.fromhex("b8 01 00 a3 00 20 b8 02 00 a3 00 20 f4")  # mov ax, 1; mov [0x2000], ax; the same with 2; hlt


def count(fd: int) -> int:
    if select.select([fd], [], [], 0)[0]:
        return os.eventfd_read(fd)
    return 0


@pytest.mark.parametrize(
    ("code", "address", "pio", "reason"),
    [(WRITES, 0x500, True, abi.KVM_EXIT_IO), (WRITES_MMIO, DATA, False, abi.KVM_EXIT_MMIO)],
    ids=["PIO", "MMIO"],
)
def test_ioeventfd(machine: Machine, code: bytes, address: int, pio: bool, reason: int) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert machine.run(code) == [reason, reason]
        machine.vm.attach_ioeventfd(fd, address, 2, pio=pio)
        assert machine.run(code) == []
        assert count(fd) == 2
        with pytest.raises(KvmError, match=r"^KVM_IOEVENTFD failed: File exists"):
            machine.vm.attach_ioeventfd(fd, address, 2, pio=pio)
        machine.vm.detach_ioeventfd(fd, address, 2, pio=pio)
        assert machine.run(code) == [reason, reason]
        assert count(fd) == 0
    finally:
        os.close(fd)


def test_doorbells_follow_their_bar(machine: Machine) -> None:
    """A write where virtqueue n is notified is one to its eventfd; elsewhere, and without the BAR, it is an exit."""
    kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    warnings: list[str] = []
    try:
        doorbells = Doorbells(machine.vm, kicks, 0x100, 4, warnings.append)
        doorbells.moved(DATA - 0x104)
        assert machine.run(WRITES_MMIO) == []
        assert [count(fd) for fd in kicks] == [0, 2]
        doorbells.moved(None)
        assert machine.run(WRITES_MMIO) == [abi.KVM_EXIT_MMIO] * 2
        doorbells.moved(DATA - 0x100)
        assert machine.run(WRITES_MMIO) == []
        assert [count(fd) for fd in kicks] == [2, 0]
        other = Doorbells(machine.vm, kicks, 0x100, 4, warnings.append)
        other.moved(DATA - 0x100)
        assert len(warnings) == 1 and "take one more VM exit each: KVM_IOEVENTFD failed: File exists" in warnings[0]
        other.moved(None)
        assert machine.run(WRITES_MMIO) == []
    finally:
        for fd in kicks:
            os.close(fd)


def test_ioeventfd_of_one_value(machine: Machine) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        machine.vm.attach_ioeventfd(fd, 0x500, 2, pio=True, datamatch=2)
        assert machine.run(WRITES) == [abi.KVM_EXIT_IO]
        assert count(fd) == 1
        *_, offset = exits.IO.unpack_from(machine.vcpu.page, abi.RUN_EXIT)
        assert struct.unpack_from("<H", machine.vcpu.page, offset) == (1,)
        machine.vm.detach_ioeventfd(fd, 0x500, 2, pio=True, datamatch=2)
        assert machine.run(WRITES) == [abi.KVM_EXIT_IO] * 2
    finally:
        os.close(fd)
