"""/dev/kvm itself: what this kernel offers, and new VMs."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from vmservice.errors import HostError, HostFacilityMissing, NotPermitted
from vmservice.kvm import abi, ioctl
from vmservice.kvm.vm import KvmVm

_DEVICE = "/dev/kvm"

# KVM has room for 256 (KVM_MAX_CPUID_ENTRIES).
_CPUID_ENTRIES = 256
# How many memory slots a KVM has at least that does not tell (KVM_MEMORY_SLOTS when there was no question for it).
_MEMORY_SLOTS_UNSAID = 32

_REQUIRED = {
    abi.KVM_CAP_IRQCHIP: "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)",
    abi.KVM_CAP_USER_MEMORY: "guest memory from user space (KVM_CAP_USER_MEMORY)",
    abi.KVM_CAP_SET_TSS_ADDR: "a TSS address (KVM_CAP_SET_TSS_ADDR)",
    abi.KVM_CAP_SET_IDENTITY_MAP_ADDR: "an identity map address (KVM_CAP_SET_IDENTITY_MAP_ADDR)",
    abi.KVM_CAP_EXT_CPUID: "CPUID leaves (KVM_CAP_EXT_CPUID)",
    abi.KVM_CAP_IMMEDIATE_EXIT: "kicks that cannot be lost (KVM_CAP_IMMEDIATE_EXIT)",
}


class Kvm:
    """An open /dev/kvm. `masked` names capabilities to report as absent, so that tests reach the fall-backs."""

    def __init__(self, device: str = _DEVICE, masked: tuple[int, ...] = ()) -> None:
        self.fd = _open(device)
        self._masked = masked
        try:
            self._check_version(device)
            self.run_bytes = ioctl.call(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE, name="KVM_GET_VCPU_MMAP_SIZE")
        except BaseException:
            self.close()
            raise

    def _check_version(self, device: str) -> None:
        version = ioctl.raw(self.fd, abi.KVM_GET_API_VERSION, 0)
        if version != abi.KVM_API_VERSION:
            raise HostFacilityMissing(f"{device} is not a KVM of API version {abi.KVM_API_VERSION} (its answer was {version})")

    def extension(self, capability: int) -> int:
        """What KVM_CHECK_EXTENSION answers: 0 for absent, else 1 or a figure that the capability defines."""
        if capability in self._masked:
            return 0
        return max(ioctl.raw(self.fd, abi.KVM_CHECK_EXTENSION, capability), 0)

    def missing(self) -> list[str]:
        """What no VM can do without and this kernel lacks, in words."""
        return [words for capability, words in _REQUIRED.items() if not self.extension(capability)]

    def require(self) -> None:
        """HostFacilityMissing unless a VM can be built on this kernel."""
        missing = self.missing()
        if missing:
            raise HostFacilityMissing(f"KVM on this host lacks {', '.join(missing)}")

    @property
    def max_vcpus(self) -> int:
        """The most vCPUs that one VM may have; the documentation of KVM says 4 where the kernel does not tell."""
        return self.extension(abi.KVM_CAP_MAX_VCPUS) or self.extension(abi.KVM_CAP_NR_VCPUS) or 4

    def supported_cpuid(self) -> bytes:
        """Every CPUID leaf that the host and KVM can give a guest, as consecutive struct kvm_cpuid_entry2."""
        head_bytes, entry_bytes = ctypes.sizeof(abi.kvm_cpuid2), abi.CPUID_ENTRY.size
        buffer = ctypes.create_string_buffer(head_bytes + _CPUID_ENTRIES * entry_bytes)
        head = abi.kvm_cpuid2.from_buffer(buffer)
        head.nent = _CPUID_ENTRIES
        ioctl.call(self.fd, abi.KVM_GET_SUPPORTED_CPUID, buffer, name="KVM_GET_SUPPORTED_CPUID")
        return buffer.raw[head_bytes : head_bytes + head.nent * entry_bytes]

    def msr_indexes(self) -> list[int]:
        """The MSRs that KVM knows of a guest's state; a host's other models may have more, a vCPU may have fewer."""
        from vmservice.kvm import abi_state

        buffer = ctypes.create_string_buffer(4)
        # E2BIG says how many there are.
        ioctl.raw(self.fd, abi_state.KVM_GET_MSR_INDEX_LIST, ctypes.addressof(buffer))
        count = int.from_bytes(buffer.raw, "little")
        buffer = ctypes.create_string_buffer(buffer.raw, 4 + 4 * count)
        ioctl.call(self.fd, abi_state.KVM_GET_MSR_INDEX_LIST, buffer, name="KVM_GET_MSR_INDEX_LIST")
        return list(struct.unpack_from(f"<{count}I", buffer, 4))

    def create_vm(self) -> KvmVm:
        fd = ioctl.call(self.fd, abi.KVM_CREATE_VM, name="KVM_CREATE_VM")
        memory_slots = self.extension(abi.KVM_CAP_NR_MEMSLOTS) or _MEMORY_SLOTS_UNSAID
        return KvmVm(fd, self.run_bytes, self.extension(abi.KVM_CAP_COALESCED_MMIO), memory_slots)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise HostFacilityMissing(
                f"{device} does not exist: this host has no KVM; load the module kvm_intel or kvm_amd,"
                " or enable virtualisation in the host's firmware"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(
                f"no permission to open {device}: the account that runs the VM must be in the group that owns it (kvm)"
            ) from error
        if error.errno in (errno.ENODEV, errno.ENXIO):
            raise HostFacilityMissing(f"{device} has no driver behind it: load the module kvm_intel or kvm_amd") from error
        raise HostError.from_os(f"cannot open {device}", error) from error
