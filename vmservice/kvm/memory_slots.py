"""Memory slots: which ranges of the guest's address space KVM backs with which mappings of ours."""

from __future__ import annotations

import _thread
import ctypes

from vmservice.errors import HostError, KvmError
from vmservice.kvm import abi, ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Protocol

    class Region(Protocol):
        """As memory/guest_memory.py has it."""

        @property
        def gpa(self) -> int: ...

        @property
        def mapping(self) -> mmap.mmap: ...


class MemorySlots:
    """The slots of the VM `vm_fd`, at most `limit`. Ranges come and go, from any thread; a number that is free is used again.

    KVM names a slot by its number, callers by the range's gpa. A mapping must stay as long as its slot does.
    """

    def __init__(self, vm_fd: int, limit: int) -> None:
        self._vm_fd = vm_fd
        self._limit = limit
        self._lock = _thread.allocate_lock()
        self._by_gpa: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_gpa)

    def add(self, gpa: int, mapping: mmap.mmap, *, read_only: bool = False) -> int:
        """Show all of `mapping` to the guest at `gpa`; the slot's number. KvmError when KVM refuses, with nothing changed:
        it wants whole pages, and no two slots at one address."""
        with self._lock:
            slot = self._free_number()
            self._tell(slot, gpa, mapping, read_only=read_only)
            self._by_gpa[gpa] = slot
            return slot

    def remove(self, gpa: int) -> None:
        """Take away the range that starts at `gpa`; KeyError when none does. After it no vCPU reaches the mapping any more."""
        with self._lock:
            slot = self._by_gpa[gpa]
            self._tell(slot, gpa, None)
            del self._by_gpa[gpa]

    # As a listener of guest memory

    def region_added(self, region: Region) -> None:
        self.add(region.gpa, region.mapping)

    def region_removed(self, region: Region) -> None:
        self.remove(region.gpa)

    def _free_number(self) -> int:
        used = set(self._by_gpa.values())
        for number in range(self._limit):
            if number not in used:
                return number
        raise HostError(f"KVM on this host gives a VM at most {self._limit} memory slots, and all are in use")

    def _tell(self, slot: int, gpa: int, mapping: mmap.mmap | None, *, read_only: bool = False) -> None:
        region = abi.kvm_userspace_memory_region(slot=slot, guest_phys_addr=gpa)
        if mapping is not None:  # else a size of 0, which deletes the slot
            region.flags = abi.KVM_MEM_READONLY if read_only else 0
            region.memory_size = len(mapping)
            region.userspace_addr = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        try:
            ioctl.call(self._vm_fd, abi.KVM_SET_USER_MEMORY_REGION, region, name="KVM_SET_USER_MEMORY_REGION")
        except KvmError as error:
            raise KvmError(f"memory slot {slot} at {gpa:#x}: {error}", error.errno) from error
