"""Runs on a VM's host whose SVM is emulated, as root: has its kernel note what becomes of guests there and nothing else tells.

    svm_faults.py arm | tell | mixed-up

* Where a guest was that a triple fault has stopped. KVM on AMD resets the vCPU silently. The head of the struct kvm_vcpu is
  noted whenever kvm_amd comes to such an exit, at no cost until then.
* That a guest page fault was at a RIP where the host's own KVM enters a guest, at which no guest can be: the emulator has put
  the host's registers in the place of the guest's, which never goes on from there.

`tell` prints a line for each triple fault: the instruction and the page table at which it was. `mixed-up` prints how many page
faults of the second kind there were.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

TRACING = Path("/sys/kernel/tracing")
# A buffer of its own, which whoever traces something else does not clear.
OWN = TRACING / "instances/shutdowns"
EVENT = "vmservice_lab/shutdown"
MIXED_UP = TRACING / "instances/mixed_up"
WORDS = 64
SHOWN = {"rip": ("regs", 16), "rsp": ("regs", 4), "cr0": ("cr0", 0), "cr2": ("cr2", 0), "cr3": ("cr3", 0), "cr4": ("cr4", 0)}
# BTF's kinds (Documentation/bpf/btf.rst): bytes behind each type's three words, and for each of its members.
STRUCT, UNION, TYPEDEFS = 4, 5, (8, 9, 10)
FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
PER_MEMBER = {STRUCT: 12, UNION: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class Btf:
    """The types of a module of the kernel, which go on where vmlinux' end."""

    def __init__(self) -> None:
        self.types: list[tuple[int, int, int, list[tuple[int, int, int]]]] = [(0, 0, 0, [])]
        self.names = b""
        for part in ("vmlinux", "kvm"):
            self._add(Path("/sys/kernel/btf", part).read_bytes())

    def _add(self, data: bytes) -> None:
        header, type_offset, type_length, name_offset, name_length = struct.unpack_from("<4xIIIII", data)
        self.names += data[header + name_offset :][:name_length]
        at, end = header + type_offset, header + type_offset + type_length
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            at += 12
            members = []
            if kind in (STRUCT, UNION):
                mask = 0xFFFFFF if info >> 31 else 0xFFFFFFFF
                found = [struct.unpack_from("<III", data, at + 12 * number) for number in range(count)]
                members = [(name_at, type_, bits & mask) for name_at, type_, bits in found]
            at += FIXED.get(kind, 0) + PER_MEMBER.get(kind, 0) * count
            self.types.append((kind, name, size, members))

    def _name(self, at: int) -> bytes:
        return self.names[at : self.names.index(b"\0", at)]

    def offset(self, struct_name: str, *path: str) -> int:
        """Of a member of a member of that struct, in bytes."""
        (type_,) = (one for one in self.types if one[0] == STRUCT and self._name(one[1]) == struct_name.encode())
        bits = 0
        for word in path:
            _, number, offset = next(one for one in type_[3] if self._name(one[0]) == word.encode())
            bits += offset
            type_ = self.types[number]
            while type_[0] in TYPEDEFS:
                type_ = self.types[type_[2]]
        return bits // 8


def arm() -> None:
    subprocess.run(["modprobe", "kvm-amd"], check=True)
    if not (TRACING / "kprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "none", TRACING], check=True)
    (TRACING / "kprobe_events").write_text(f"p:{EVENT} kvm_amd:shutdown_interception vcpu=+0(%di):x64[{WORDS}]")
    OWN.mkdir(exist_ok=True)
    (OWN / "events" / EVENT / "enable").write_text("1")
    MIXED_UP.mkdir(exist_ok=True)
    start, end = entry_of_guests(Path("/proc/kallsyms").read_text())
    event = MIXED_UP / "events/kvm/kvm_page_fault"
    (event / "filter").write_text(f"guest_rip >= {start:#x} && guest_rip < {end:#x}")
    (event / "enable").write_text("1")


def entry_of_guests(kallsyms: str) -> tuple[int, int]:
    """Where the host's kvm_amd enters a guest, and where its next function begins: "f…c095b620 t __svm_vcpu_run	[kvm_amd]".

    No wider: the guest's own modules may be where the rest of the host's KVM is.
    """
    lines = (line.split() for line in kallsyms.splitlines() if line.endswith("[kvm_amd]"))
    functions = sorted((int(words[0], 16), words[2]) for words in lines if words[1] in "tT")
    (at,) = (number for number, (_, name) in enumerate(functions) if name == "__svm_vcpu_run")
    return functions[at][0], functions[at + 1][0]


def mixed_up() -> None:
    """Of all that were written, also those that newer ones have pushed out."""
    entries = re.search(r"entries-in-buffer/entries-written: \d+/(\d+)", (MIXED_UP / "trace").read_text())
    print(entries[1] if entries else 0)


def tell() -> None:
    lines = [line for line in (OWN / "trace").read_text().splitlines() if " shutdown: " in line]
    if not lines:
        print("no triple fault noted")
        return
    btf = Btf()
    offsets = {name: btf.offset("kvm_vcpu", "arch", member) + 8 * index for name, (member, index) in SHOWN.items()}
    for line in lines:
        words = [int(word, 16) for word in re.findall(r"0x[0-9a-f]+", line.partition("vcpu={")[2])]
        print("triple fault:", *(f"{name} {words[offset // 8]:#x}" for name, offset in offsets.items()))


if __name__ == "__main__":
    {"arm": arm, "tell": tell, "mixed-up": mixed_up}[sys.argv[1]]()
