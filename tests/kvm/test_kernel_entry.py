"""How a kernel is entered on the real /dev/kvm: a few instructions that look at what they find there."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support.images import elf, note_segment, pvh_note, segment
from support.kvm_guest import needs_kvm, running_guest, wait_until

from vmservice.arch.x86_64 import gdt
from vmservice.kvm import abi
from vmservice.vm.events import EventKind

pytestmark = [pytest.mark.kvm, needs_kvm]

# out 0x3f8, al; mov al, 0x34; out 0x600, al; hlt; jmp to the hlt: the same in both modes. AL is printed, then all is off.
PRINT_AND_POWER_OFF = bytes.fromhex("66baf803 ee 66ba0006 b034 ee f4 ebfd")
# xor eax, eax; inc eax; nop; cmp al, 1 in 32-bit mode. In 64-bit mode 0x40 is a prefix and EAX stays 0.
IS_32_BIT = bytes.fromhex("31c0 40 90 3c01")
# xor eax, eax; xchg rax, rax; test eax, eax in 64-bit mode. In 32-bit mode 0x48 is dec eax.
IS_64_BIT = bytes.fromhex("31c0 4890 85c0")
HAS_START_INFO = bytes.fromhex("813b 78c56e33")  # cmp dword [ebx], magic
HAS_ZERO_PAGE = bytes.fromhex("81be 02020000 48647253")  # cmp dword [rsi + 0x202], "HdrS"


def code(letter: str, *checks: bytes) -> bytes:
    """Prints `letter` if every check sets the zero flag, else a question mark."""
    good = b"\xb0" + letter.encode() + PRINT_AND_POWER_OFF
    bad = b"\xb0?" + PRINT_AND_POWER_OFF
    program = good + bad
    distance = len(good)
    for check in reversed(checks):
        jump = b"\x75" + bytes((distance,))  # jne to the bad end
        program = check + jump + program
        distance += len(check) + len(jump)
    return program


PVH_CODE = code("P", IS_32_BIT, HAS_START_INFO)
LINUX_CODE = code("L", IS_64_BIT, HAS_ZERO_PAGE)


@pytest.mark.parametrize(
    ("image", "letter", "protocol"),
    [
        (
            elf([segment(0x100000, LINUX_CODE), segment(0x200000, PVH_CODE), note_segment(pvh_note(0x200000))], entry=0x100000),
            b"P",
            "PVH",
        ),
        (elf([segment(0x100000, LINUX_CODE), segment(0x200000, PVH_CODE)], entry=0x100000), b"L", "64-bit"),
    ],
    ids=["PVH", "64-bit"],
)
def test_mode_and_registers_at_the_entry(tmp_path: Path, image: bytes, letter: bytes, protocol: str) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(image)
    with running_guest(path, is_kernel=True) as guest:
        assert guest.next_event().kind == EventKind.POWEROFF
        assert guest.output.data == letter
        assert guest.messages == [f"booting {path} by the {protocol} boot protocol"]


# lidt [0x200f00]; mov dx, 0x3f9; mov al, 2; out dx, al: COM1 interrupts at once, for its transmitter is empty;
# sti; mov ecx, 1000000; loop; cli; mov al, "-": nothing came.
WAIT_FOR_COM1 = bytes.fromhex("0f011d000f2000 66baf903 b002 ee fb b940420f00 e2fe fa b02d") + PRINT_AND_POWER_OFF
INTERRUPTED = bytes.fromhex("fa b021") + PRINT_AND_POWER_OFF  # cli; mov al, "!"
HANDLER, IDTR, IDT = 0x100, 0xF00, 0x1000
EVERY_VECTOR = struct.pack("<HHBBH", HANDLER, 8 * gdt.CODE, 0, 0x8E, 0x20) * 256  # interrupt gates to 0x200100


@pytest.mark.parametrize("masked", [(), (abi.KVM_CAP_SPLIT_IRQCHIP,)], ids=["split irqchip", "in-kernel irqchip"])
def test_no_interrupt_comes_from_a_pic_that_nobody_has_programmed(tmp_path: Path, masked: tuple[int, ...]) -> None:
    """KVM's 8259 is as at power-on, base 0 and nothing masked: the interrupt of COM1 came through LINT0 as vector 4."""
    program = bytearray(IDT + len(EVERY_VECTOR))
    for offset, part in ((0, WAIT_FOR_COM1), (HANDLER, INTERRUPTED), (IDTR, struct.pack("<HI", 2047, 0x200000 + IDT))):
        program[offset : offset + len(part)] = part
    program[IDT:] = EVERY_VECTOR
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([segment(0x200000, bytes(program)), note_segment(pvh_note(0x200000))], entry=0x200000))
    with running_guest(path, is_kernel=True, masked=masked) as guest:
        assert guest.next_event().kind == EventKind.POWEROFF
        assert guest.output.data == b"-"


def test_a_64_bit_kernel_finds_its_caches_on(tmp_path: Path) -> None:
    """CD and NW of CR0 are set by a reset; a kernel that is entered by the 64-bit protocol need not look."""
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([segment(0x100000, LINUX_CODE)], entry=0x100000))
    with running_guest(path, is_kernel=True) as guest:
        guest.next_event()
        assert guest.machines[-1].vcpu_set.first.sregs().cr0 & (1 << 30 | 1 << 29) == 0


# mov dx, 0x3f8; mov al, "!"; out dx, al; cli; hlt; jmp: never looks at the line status, and leaves no more exits.
PRINT_AND_HALT = bytes.fromhex("66baf803 b021 ee fa f4 ebfd")
# mov dx, 0x3fd; in al, dx: from then on KVM gathers what it writes.
LOOK = bytes.fromhex("66bafd03 ec")


@pytest.mark.parametrize("looks", [False, True])
def test_the_last_byte_is_heard_though_nothing_comes_after_it(tmp_path: Path, looks: bool) -> None:
    """A byte that KVM gathers waits for the next exit, which may never come: a timer looks for it. Before the guest has looked
    whether it may write, KVM gathers nothing."""
    path = tmp_path / "vmlinux"
    program = (LOOK if looks else b"") + PRINT_AND_HALT
    path.write_bytes(elf([segment(0x200000, program), note_segment(pvh_note(0x200000))], entry=0x200000))
    with running_guest(path, is_kernel=True) as guest:
        if not looks:
            guest.output.wait_for(b"!")

        def heard() -> bytes | None:
            guest.timers.run_due()
            return guest.output.data or None

        assert wait_until(heard, "the guest was not heard") == b"!"
        wait_until(lambda: guest.timers.run_due() is None or None, "a timer of an idle machine goes on")
