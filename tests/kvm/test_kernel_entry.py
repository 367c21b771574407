"""How a kernel is entered on the real /dev/kvm: a few instructions that look at what they find there."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.images import elf, note_segment, pvh_note, segment
from support.kvm_guest import needs_kvm, running_guest

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
        guest.vm.tick()
        assert guest.output.data == letter
        assert guest.messages == [f"booting {path} by the {protocol} boot protocol"]
