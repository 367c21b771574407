"""CPUID leaves for one vCPU: what KVM supports, with this machine's own facts laid over (Intel SDM vol. 2A, CPUID)."""

from __future__ import annotations

from vmservice.kvm.abi import CPUID_ENTRY

_FEATURES = 0x1
_TOPOLOGY = 0xB
_TOPOLOGY_V2 = 0x1F

_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31

_EBX_APIC_ID_SHIFT = 24


def vcpu_cpuid(supported: bytes, apic_id: int, *, tsc_deadline: bool) -> bytes:
    """`supported` for the vCPU with `apic_id` (0 to 255): its own id wherever CPUID tells one, and the hypervisor bit.

    Both are consecutive struct kvm_cpuid_entry2. `tsc_deadline` says whether the in-kernel local APIC has that timer mode;
    KVM_GET_SUPPORTED_CPUID never claims it.
    """
    leaves = bytearray(supported)
    for offset in range(0, len(leaves), CPUID_ENTRY.size):
        function, index, flags, eax, ebx, ecx, edx = CPUID_ENTRY.unpack_from(leaves, offset)
        if function == _FEATURES:
            ecx |= _ECX_HYPERVISOR | (_ECX_TSC_DEADLINE if tsc_deadline else 0)
            ebx = ebx & 0x00FFFFFF | apic_id << _EBX_APIC_ID_SHIFT
        elif function in (_TOPOLOGY, _TOPOLOGY_V2):
            edx = apic_id
        else:
            continue
        CPUID_ENTRY.pack_into(leaves, offset, function, index, flags, eax, ebx, ecx, edx)
    return bytes(leaves)
