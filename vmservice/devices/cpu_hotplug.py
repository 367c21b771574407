"""The register block by which a guest learns of vCPUs that came, and gives back those that shall go.

The layout is that of QEMU's and Cloud Hypervisor's CPU hotplug device, so far as both have it: twelve ports, one vCPU
selected at a time. ACPI code in the DSDT (`acpi/cpu_aml.py`) is its only driver: on the GED's CPU event it walks all vCPUs,
notifies the guest of each that is being inserted or removed, and writes the flag back to acknowledge it.
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Registers, by offset.
SELECT = 0  # u32: the vCPU that the flags are of
FLAGS = 4  # u8

# The flags when read; INSERTING and REMOVING written as 1 are acknowledged, EJECT gives the vCPU back.
ENABLED = 0x01
INSERTING = 0x02
REMOVING = 0x04
EJECT = 0x08


class CpuHotplugState(DeviceState):
    """Flags by vCPU (ENABLED, INSERTING, REMOVING), the vCPUs that the guest may give back, those of which it has seen that
    they are new, and the selected one."""

    __slots__ = ("flags", "noticed", "selected", "wanted_back")

    def __init__(self, vcpus: int, max_vcpus: int) -> None:
        self.flags = bytearray([ENABLED] * vcpus + [0] * (max_vcpus - vcpus))
        self.wanted_back: list[int] = []
        self.noticed: list[int] = []
        self.selected = 0


class CpuHotplug:
    """`on_taken(vcpu)` is called when the guest has seen a new vCPU, `on_ejected(vcpu)` when it has given one back.

    A guest can only give back what the host has wanted back at some time, and never vCPU 0, without which nothing would run.
    It may be slow: what it has begun to do counts whenever it does it, and is not taken back.
    """

    def __init__(self, state: CpuHotplugState, on_taken: Callable[[int], None], on_ejected: Callable[[int], None]) -> None:
        self.state = state
        self._on_taken = on_taken
        self._on_ejected = on_ejected

    # The host's side; whoever calls it raises the GED's CPU event afterwards.

    def insert(self, vcpu: int) -> None:
        """A vCPU that was absent is there."""
        if self.state.flags[vcpu] & ENABLED:
            raise ValueError(f"vCPU {vcpu} is there already")
        self.state.flags[vcpu] = ENABLED | INSERTING

    def request_removal(self, vcpu: int) -> None:
        """Ask the guest to give a vCPU back."""
        if vcpu == 0 or not self.state.flags[vcpu] & ENABLED:
            raise ValueError(f"vCPU {vcpu} cannot be removed: it is the first, or absent")
        self.state.flags[vcpu] |= REMOVING
        if vcpu not in self.state.wanted_back:
            self.state.wanted_back.append(vcpu)

    def withdraw(self) -> list[int]:
        """Ask for nothing any more. Who was to come, and the guest has not noticed, is absent again, and returned.

        Who was to go may still go: a guest that has begun to give a vCPU back cannot be told to keep it.
        """
        flags = self.state.flags
        for vcpu in self.state.wanted_back:
            flags[vcpu] &= ~REMOVING
        unnoticed = [vcpu for vcpu in self.coming() if vcpu not in self.state.noticed]
        for vcpu in unnoticed:
            flags[vcpu] = 0
        return unnoticed

    def taken(self) -> list[int]:
        """The vCPUs that the guest has."""
        return [vcpu for vcpu, flag in enumerate(self.state.flags) if flag & ENABLED and not flag & INSERTING]

    def coming(self) -> list[int]:
        """The vCPUs that are there, and that the guest has not taken yet."""
        return [vcpu for vcpu, flag in enumerate(self.state.flags) if flag & INSERTING]

    def absent(self) -> list[int]:
        return [vcpu for vcpu, flag in enumerate(self.state.flags) if not flag & ENABLED]

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        state = self.state
        flags = self._selected_flags()
        if flags & INSERTING and state.selected not in state.noticed and offset <= FLAGS < offset + size:
            state.noticed.append(state.selected)
        registers = state.selected.to_bytes(4, "little") + bytes((flags,))
        return registers[offset : offset + size].ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        if offset == SELECT and len(data) == 4:
            self.state.selected = int.from_bytes(data, "little")
        elif offset == FLAGS and len(data) == 1 and self.state.selected < len(self.state.flags):
            self._write_flags(self.state.selected, data[0])

    def _selected_flags(self) -> int:
        flags, selected = self.state.flags, self.state.selected
        return flags[selected] if selected < len(flags) else 0

    def _write_flags(self, vcpu: int, value: int) -> None:
        flags, noticed, wanted_back = self.state.flags, self.state.noticed, self.state.wanted_back
        if value & INSERTING and flags[vcpu] & INSERTING:
            flags[vcpu] &= ~INSERTING
            if vcpu in noticed:
                noticed.remove(vcpu)
            self._on_taken(vcpu)
        if value & REMOVING:
            flags[vcpu] &= ~REMOVING
        if value & EJECT and vcpu in wanted_back:
            wanted_back.remove(vcpu)
            flags[vcpu] = 0
            self._on_ejected(vcpu)
