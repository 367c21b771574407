"""One KVM vCPU: its registers, its run page, and KVM_RUN."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

from vmservice.errors import KvmError
from vmservice.kvm import abi, ioctl

_U32 = struct.Struct("<I")
_RING_INDEXES = struct.Struct("<II")
_RING_ENTRY = struct.Struct("<QII8s")
_RING_CAPACITY = (mmap.PAGESIZE - abi.COALESCED_HEAD_BYTES) // abi.COALESCED_ENTRY_BYTES

# Looked up at each exit: globals of this module are one step nearer than those of another.
_bare_ioctl = ioctl.bare
_KVM_RUN = abi.KVM_RUN
_EXIT_REASON = abi.RUN_EXIT_REASON

# What `run` answers when KVM_RUN came back without an exit to handle: a kick, or a vCPU that is not started yet.
INTERRUPTED = -1


class KvmVcpu:
    """`page` is the shared kvm_run, which the thread that calls `run` reads exits from, and answers reads in.

    `stats_fd` is a file with what KVM counts of the vCPU (stats.py), which takes no lock; negative before Linux 5.14.
    """

    def __init__(self, index: int, fd: int, run_bytes: int, coalesced_page: int) -> None:
        self.index = index
        self.fd = fd
        try:
            self.page = mmap.mmap(fd, run_bytes)
        except OSError as error:
            os.close(fd)
            raise KvmError.from_os(f"cannot map the run page of vCPU {index}", error) from error
        self._ring_offset = coalesced_page * mmap.PAGESIZE
        # Now: KVM would keep the caller waiting for a vCPU that is in the guest.
        self.stats_fd = ioctl.raw(fd, abi.KVM_GET_STATS_FD, 0)

    def run(self) -> int:
        """Run the guest; the exit reason (KVM_EXIT_*), or INTERRUPTED."""
        try:
            _bare_ioctl(self.fd, _KVM_RUN)
        except (InterruptedError, BlockingIOError):  # the latter: an application processor that still waits for SIPI
            return INTERRUPTED
        except OSError as error:
            raise KvmError.from_os(f"KVM_RUN failed for vCPU {self.index}", error) from error
        # Reasons fit a byte; one index is quicker than unpacking the u32.
        return self.page[_EXIT_REASON]

    def set_immediate_exit(self, value: int) -> None:
        """1 makes the next KVM_RUN return at once; a signal makes the present one return."""
        self.page[abi.RUN_IMMEDIATE_EXIT] = value

    def coalesced(self) -> list[tuple[int, bytes]]:
        """Take the writes that gathered in the ring, oldest first: (port, data). All vCPUs of a VM share one ring."""
        first, last = _RING_INDEXES.unpack_from(self.page, self._ring_offset)
        if first == last:
            return []
        writes = []
        while first != last:
            offset = self._ring_offset + abi.COALESCED_HEAD_BYTES + first * abi.COALESCED_ENTRY_BYTES
            port, size, _, data = _RING_ENTRY.unpack_from(self.page, offset)
            writes.append((port, data[:size]))
            first = (first + 1) % _RING_CAPACITY
        _U32.pack_into(self.page, self._ring_offset, first)
        return writes

    def regs(self) -> abi.kvm_regs:
        regs = abi.kvm_regs()
        ioctl.call(self.fd, abi.KVM_GET_REGS, regs, name="KVM_GET_REGS")
        return regs

    def set_regs(self, regs: abi.kvm_regs) -> None:
        ioctl.call(self.fd, abi.KVM_SET_REGS, regs, name="KVM_SET_REGS")

    def sregs(self) -> abi.kvm_sregs:
        sregs = abi.kvm_sregs()
        ioctl.call(self.fd, abi.KVM_GET_SREGS, sregs, name="KVM_GET_SREGS")
        return sregs

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        ioctl.call(self.fd, abi.KVM_SET_SREGS, sregs, name="KVM_SET_SREGS")

    def set_fpu(self, fpu: abi.kvm_fpu) -> None:
        ioctl.call(self.fd, abi.KVM_SET_FPU, fpu, name="KVM_SET_FPU")

    def set_msrs(self, msrs: list[tuple[int, int]]) -> None:
        """(index, value) pairs; KvmError names the first that KVM did not take."""
        head_bytes = ctypes.sizeof(abi.kvm_msrs)
        buffer = ctypes.create_string_buffer(head_bytes + len(msrs) * ctypes.sizeof(abi.kvm_msr_entry))
        abi.kvm_msrs.from_buffer(buffer).nmsrs = len(msrs)
        entries = (abi.kvm_msr_entry * len(msrs)).from_buffer(buffer, head_bytes)
        for entry, (index, value) in zip(entries, msrs, strict=True):
            entry.index = index
            entry.data = value
        taken = ioctl.call(self.fd, abi.KVM_SET_MSRS, buffer, name="KVM_SET_MSRS")
        if taken != len(msrs):
            raise KvmError(f"KVM_SET_MSRS refused MSR {msrs[taken][0]:#x} of vCPU {self.index}")

    def set_cpuid(self, entries: bytes) -> None:
        """`entries` are consecutive struct kvm_cpuid_entry2."""
        buffer = ctypes.create_string_buffer(
            bytes(abi.kvm_cpuid2(nent=len(entries) // abi.CPUID_ENTRY.size)) + entries,
        )
        ioctl.call(self.fd, abi.KVM_SET_CPUID2, buffer, name="KVM_SET_CPUID2")

    def lapic(self) -> abi.kvm_lapic_state:
        state = abi.kvm_lapic_state()
        ioctl.call(self.fd, abi.KVM_GET_LAPIC, state, name="KVM_GET_LAPIC")
        return state

    def set_lapic(self, state: abi.kvm_lapic_state) -> None:
        ioctl.call(self.fd, abi.KVM_SET_LAPIC, state, name="KVM_SET_LAPIC")

    def tell_paused(self) -> None:
        """Let kvmclock tell the guest's watchdogs that it was stopped. A guest that has no kvmclock is not told (EINVAL)."""
        ioctl.raw(self.fd, abi.KVM_KVMCLOCK_CTRL, 0)

    def close(self) -> None:
        if self.fd >= 0:
            self.page.close()
            if self.stats_fd >= 0:
                os.close(self.stats_fd)
            os.close(self.fd)
            self.fd = self.stats_fd = -1
