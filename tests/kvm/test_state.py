"""KVM's whole state of a guest, taken from one VM and set into a fresh one over the same memory, on the real /dev/kvm."""

from __future__ import annotations

import ctypes
import json
import mmap
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.kvm_guest import TIMEOUT_SEC, Output, needs_kvm
from support.payload import BANNER, IMAGE_BYTES

from vmservice.arch.x86_64 import layout
from vmservice.errors import KvmError
from vmservice.kvm import abi, abi_state, exits, state
from vmservice.kvm.state import KvmState, complete_exit
from vmservice.kvm.system import Kvm
from vmservice.kvm.vcpu import KvmVcpu
from vmservice.kvm.vm import KvmVm
from vmservice.vm.vcpu import VcpuThread, install_kick_handler

pytestmark = [pytest.mark.kvm, needs_kvm]

RAM_BYTES = 4 << 20
LINE_STATUS_READY = 0x60
NUMBERS, ECHO = 0x500, 0x501
FORGOTTEN_TIMER = 0x390  # of a local APIC: what is left of the countdown


class Harness:
    """Guest memory that outlives its VMs: each of `handover` gives the guest a fresh one. COM1 only prints; what else the
    guest asks for is not there, but for two ports: NUMBERS answers 0, 1, 2, …, and what is written to ECHO is kept."""

    def __init__(self, image: bytes, vcpus: int = 1, *, split_irqchip: bool = True) -> None:
        self._split_irqchip = split_irqchip
        self.output = Output()
        self.echoed: list[int] = []
        self.numbers = 0
        self.faults: list[Exception] = []
        self.complete = complete_exit
        self._lock = threading.Lock()
        self._ram = mmap.mmap(-1, RAM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._rom = mmap.mmap(-1, IMAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._ram[layout.BIOS_AREA_END - IMAGE_BYTES : layout.BIOS_AREA_END] = self._rom[:] = image
        self.kvm = Kvm()
        self._create(vcpus)
        for vcpu in self.vcpus:
            vcpu.set_cpuid(self.kvm.supported_cpuid())

    def _create(self, vcpus: int) -> None:
        self.vm: KvmVm = self.kvm.create_vm()
        self.vm.set_tss_address(layout.TSS_ADDRESS)
        self.vm.set_identity_map_address(layout.IDENTITY_MAP_ADDRESS)
        self.vm.memory.add(0, self._ram)
        self.vm.memory.add(layout.FIRMWARE_END - IMAGE_BYTES, self._rom)
        if self._split_irqchip:
            self.vm.enable_split_irqchip(layout.IOAPIC_PINS)
        else:
            self.vm.create_irqchip()
        self.vcpus: list[KvmVcpu] = [self.vm.create_vcpu(index) for index in range(vcpus)]
        self.threads: list[VcpuThread] = []

    def start(self) -> None:
        self.threads = [VcpuThread(vcpu, self._handle, self.faults.append) for vcpu in self.vcpus]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Every vCPU holds, its last exit complete, and its thread is gone."""
        for thread in self.threads:
            thread.request_stop()
        for thread in self.threads:
            assert thread.wait_stopped(TIMEOUT_SEC)
            thread.finish()
        self.threads = []
        for vcpu in self.vcpus:
            self.complete(vcpu, self._handle)
        assert self.faults == []

    def take(self) -> dict[str, object]:
        door = KvmState(self.kvm, self.vm)
        return {"vm": door.get_vm(), "vcpus": [door.get_vcpu(vcpu) for vcpu in self.vcpus]}

    def handover(self) -> None:
        """Stopped before; a fresh VM with the same state afterwards, which has been text in between."""
        text = json.dumps(self.take())
        self.close_vm()
        self._create(len(self.vcpus))
        self.put(json.loads(text))

    def put(self, tree: dict[str, object]) -> None:
        door = KvmState(self.kvm, self.vm)
        saved = tree["vcpus"]
        assert isinstance(saved, list) and isinstance(tree["vm"], dict)
        for vcpu, one in zip(self.vcpus, saved, strict=True):
            assert door.set_vcpu(vcpu, one) == []
        door.set_vm(tree["vm"])
        for vcpu in self.vcpus:
            vcpu.tell_paused()

    def _handle(self, vcpu: KvmVcpu, reason: int) -> bool:
        page = vcpu.page
        if reason == abi.KVM_EXIT_MMIO:
            page[exits.MMIO_DATA : exits.MMIO_DATA + 8] = bytes(8)
            return True
        assert reason == abi.KVM_EXIT_IO, reason
        direction, size, port, count, offset = exits.IO.unpack_from(page, abi.RUN_EXIT)
        data = page[offset : offset + size * count]
        with self._lock:
            if direction == abi.KVM_EXIT_IO_OUT:
                if port == layout.COM1_BASE:
                    self.output.write(data)
                elif port == ECHO:
                    self.echoed += struct.unpack(f"<{len(data) // 2}H", data)
            elif port == NUMBERS:
                page[offset : offset + 2 * count] = struct.pack(f"<{count}H", *numbers(self.numbers, count))
                self.numbers += count
            else:
                answer = LINE_STATUS_READY if port == layout.COM1_BASE + 5 else 0
                page[offset : offset + size * count] = bytes((answer,)) * (size * count)
        return True

    def close_vm(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()

    def close(self) -> None:
        if self.threads:
            self.stop()
        self.close_vm()
        self.kvm.close()
        self._ram.close()
        self._rom.close()


@pytest.fixture
def harness(payloads: Callable[[str], Path]) -> Iterator[Callable[..., Harness]]:
    """Harness by the payload's variant or image, closed at the end."""
    install_kick_handler()
    made: list[Harness] = []

    def make(what: str | bytes, vcpus: int = 1, *, split_irqchip: bool = True) -> Harness:
        image = payloads(what).read_bytes() if isinstance(what, str) else what
        made.append(Harness(image, vcpus, split_irqchip=split_irqchip))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("variant", "vcpus"), [("beat", 1), ("busy", 1), ("smp", 2), ("smp", 3)])
@pytest.mark.parametrize("split_irqchip", [True, False], ids=["split", "in-kernel"])
def test_no_beat_is_lost(harness: Callable[..., Harness], variant: str, vcpus: int, split_irqchip: bool) -> None:
    guest = harness(variant, vcpus, split_irqchip=split_irqchip)
    guest.start()
    guest.output.wait_for(b"aps %d\n" % (vcpus - 1) if vcpus > 1 else b"beat 1\n")
    before, deadline = guest.output.data.count(b"beat "), time.monotonic() + TIMEOUT_SEC
    # The timer keeps its period over every stop. It would never fire if each began a period anew, for none runs so long.
    while guest.output.data.count(b"beat ") < before + 5:
        assert time.monotonic() < deadline, "there are no beats between the stops"
        time.sleep(0.037)
        guest.stop()
        guest.handover()
        guest.start()
    guest.output.wait_for(b"beat ", len(guest.output.data))
    guest.output.wait_for(b"\n", len(guest.output.data) - 1)
    guest.stop()
    assert guest.output.data.count(BANNER.split(b"\n")[1]) == 1, "it began anew"
    beats = [int(number) for number in re.findall(rb"beat (\d+)\n", guest.output.data)]
    assert beats == list(range(1, beats[-1] + 1))


# mov dx, 0x500; in ax, dx; inc dx; out dx, ax; dec dx; jmp to the in: numbers come in and go out.
COUNTS = bytes.fromhex("ba 00 05 ed 42 ef 4a eb fa")


def numbers(first: int, count: int) -> list[int]:
    """What the port answers, from the one that is asked `first`."""
    return [number & 0xFFFF for number in range(first, first + count)]


def counting() -> bytes:
    return bytes(IMAGE_BYTES - 16) + COUNTS.ljust(16, b"\xf4")


def hand_over_often(guest: Harness) -> None:
    for _ in range(60):
        guest.start()
        before = len(guest.echoed)
        while len(guest.echoed) < before + 5:
            time.sleep(0)
        guest.stop()
        guest.handover()


def test_what_an_exit_began_is_completed(harness: Callable[..., Harness]) -> None:
    guest = harness(counting())
    hand_over_often(guest)
    assert guest.echoed == numbers(0, len(guest.echoed))


def test_without_that_a_number_would_be_lost(harness: Callable[..., Harness]) -> None:
    """The test before can fail: the answer to an IN is only in the run page, and a fresh VM asks again."""
    guest = harness(counting())
    guest.complete = lambda vcpu, handle: None
    hand_over_often(guest)
    assert guest.echoed != numbers(0, len(guest.echoed))


# mov dx, 0x500; mov di, 0x1000; mov cx, 8; cld; rep insw; mov dx, 0x501; mov si, 0x1000; mov cx, 8; rep outsw; jmp
STRINGS = bytes.fromhex("ba0005 bf0010 b90800 fc f36d ba0105 be0010 b90800 f36f ebe7")


def test_string_instructions_are_completed_too(harness: Callable[..., Harness]) -> None:
    image = bytearray(IMAGE_BYTES)
    image[: len(STRINGS)] = STRINGS
    image[-16:-11] = bytes.fromhex("ea 0000 00f0")  # jmp f000:0000, the same bytes below 1 MiB
    guest = harness(bytes(image))
    hand_over_often(guest)
    assert len(guest.echoed) > 100
    assert guest.echoed == numbers(0, len(guest.echoed))


def comparable(tree: dict[str, object]) -> object:
    """Without what goes on by itself: the TSC, and what is left of a countdown."""
    copy = json.loads(json.dumps(tree))
    copy["vm"]["clock"] = None
    for vcpu in copy["vcpus"]:
        vcpu["msrs"] = [pair for pair in vcpu["msrs"] if pair[0] not in (state.MSR_IA32_TSC, 0x11, 0x12)]
        lapic = bytearray.fromhex(vcpu["lapic"])
        lapic[FORGOTTEN_TIMER : FORGOTTEN_TIMER + 4] = bytes(4)
        vcpu["lapic"] = lapic.hex()
    return copy


def test_what_is_set_is_what_was_taken(harness: Callable[..., Harness]) -> None:
    guest = harness("beat")
    guest.start()
    guest.output.wait_for(b"beat 2\n")
    guest.stop()
    taken = guest.take()
    vcpus = taken["vcpus"]
    assert isinstance(vcpus, list)
    assert len(bytes.fromhex(vcpus[0]["events"])) == ctypes.sizeof(abi_state.kvm_vcpu_events)
    assert len(vcpus[0]["msrs"]) > 10
    assert {"regs", "lapic", "xsave", "xcrs", "debugregs", "cpuid", "mp_state", "tsc_offset"} <= vcpus[0].keys()
    guest.close_vm()
    guest._create(1)
    assert comparable(guest.take()) != comparable(taken)
    guest.put(taken)
    assert comparable(guest.take()) == comparable(taken)


def guest_tsc(vcpu: KvmVcpu) -> int:
    return state.get_msrs(vcpu, [state.MSR_IA32_TSC])[0][1]


def test_the_tsc_and_the_clock_go_on_as_if_nothing_had_been(harness: Callable[..., Harness]) -> None:
    guest = harness("beat")
    guest.start()
    guest.output.wait_for(b"beat 1\n")
    guest.stop()
    door = KvmState(guest.kvm, guest.vm)
    khz = door.get_vcpu(guest.vcpus[0])["tsc_khz"]
    before = time.monotonic()
    tsc, clock = guest_tsc(guest.vcpus[0]), door.get_vm()["clock"]["ns"]
    least = -time.monotonic()
    tree = guest.take()
    time.sleep(0.2)
    guest.close_vm()
    guest._create(1)
    guest.put(tree)
    least += time.monotonic()
    tsc_after, clock_after = guest_tsc(guest.vcpus[0]), KvmState(guest.kvm, guest.vm).get_vm()["clock"]["ns"]
    most = time.monotonic() - before
    # In seconds. However long this test was made to wait in between, the truth lies there.
    assert least - 0.005 < (tsc_after - tsc) / khz / 1e3 < most + 0.005
    assert least - 0.005 < (clock_after - clock) / 1e9 < most + 0.005


def test_a_state_of_another_size_is_refused(harness: Callable[..., Harness]) -> None:
    guest = harness("beat")
    door = KvmState(guest.kvm, guest.vm)
    saved = door.get_vcpu(guest.vcpus[0])
    saved["regs"] = saved["regs"][2:]
    with pytest.raises(KvmError, match=r"regs of vCPU 0 is saved as 143 bytes, and KVM's struct has 144"):
        door.set_vcpu(guest.vcpus[0], saved)


def test_an_msr_that_kvm_does_not_take(harness: Callable[..., Harness]) -> None:
    guest = harness("beat")
    door = KvmState(guest.kvm, guest.vm)
    saved = door.get_vcpu(guest.vcpus[0])
    unknown = 0xDEAD0000
    saved["msrs"] = [[unknown, 1], [unknown + 1, 0], *saved["msrs"]]
    assert door.set_vcpu(guest.vcpus[0], saved) == [unknown]
    assert state.get_msrs(guest.vcpus[0], [unknown, 0x174, unknown + 1]) == [[0x174, 0]]
    efer = 0xC0000080
    saved["msrs"] = [[efer, 1 << 63]]
    with pytest.raises(KvmError, match=r"MSR 0xc0000080 of vCPU 0"):
        door.set_vcpu(guest.vcpus[0], saved)


def test_a_deadline_that_has_just_passed_passes_anew(harness: Callable[..., Harness]) -> None:
    guest = harness("beat")
    vcpu = guest.vcpus[0]
    lapic = vcpu.lapic()
    struct.pack_into("<I", lapic, 0xF0, 0x1FF)
    struct.pack_into("<I", lapic, 0x320, 2 << 17 | 0x31)
    vcpu.set_lapic(lapic)
    saved = dict(map(tuple, KvmState(guest.kvm, guest.vm).get_vcpu(vcpu)["msrs"]))
    assert 0 < saved[state.MSR_IA32_TSC_DEADLINE] <= guest_tsc(vcpu)
    struct.pack_into("<I", lapic, 0x320, 1 << 16 | 2 << 17 | 0x31)
    vcpu.set_lapic(lapic)
    saved = dict(map(tuple, KvmState(guest.kvm, guest.vm).get_vcpu(vcpu)["msrs"]))
    assert saved[state.MSR_IA32_TSC_DEADLINE] == 0


@pytest.mark.parametrize("chips", ["in-kernel", "split"])
def test_the_kernels_interrupt_controllers(chips: str) -> None:
    kvm = Kvm()
    vm: KvmVm = kvm.create_vm()
    other: KvmVm = kvm.create_vm()
    try:
        for one in (vm, other):
            if chips == "split":
                one.enable_split_irqchip(layout.IOAPIC_PINS)
            else:
                one.create_irqchip()
                one.create_pit()
        vcpus = [one.create_vcpu(0) for one in (vm, other)]
        if chips == "in-kernel":
            vm.set_irq_line(4, True)
        taken = KvmState(kvm, vm).get_vm()
        assert (len(taken["irqchips"]), taken["pit"] is None) == ((0, True) if chips == "split" else (3, False))
        assert chips == "split" or KvmState(kvm, other).get_vm()["irqchips"] != taken["irqchips"]
        KvmState(kvm, other).set_vm(taken)
        assert KvmState(kvm, other).get_vm()["irqchips"] == taken["irqchips"]
        for vcpu in vcpus:
            vcpu.close()
    finally:
        other.close()
        vm.close()
        kvm.close()
