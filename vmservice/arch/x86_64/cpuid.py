"""CPUID leaves for one vCPU: what KVM supports, with this machine's own facts laid over (Intel SDM vol. 2A, CPUID)."""

from __future__ import annotations

from vmservice.kvm.abi import kvm_cpuid_entry2

_FEATURES = 0x1
_TOPOLOGY = 0xB
_TOPOLOGY_V2 = 0x1F

_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31

_EBX_APIC_ID_SHIFT = 24


def vcpu_cpuid(supported: list[kvm_cpuid_entry2], apic_id: int, *, tsc_deadline: bool) -> list[kvm_cpuid_entry2]:
    """`supported` for the vCPU with `apic_id` (0 to 255): its own id wherever CPUID tells one, and the hypervisor bit.

    `tsc_deadline` says whether the in-kernel local APIC has that timer mode; KVM_GET_SUPPORTED_CPUID never claims it.
    """
    leaves = []
    for leaf in supported:
        entry = kvm_cpuid_entry2.from_buffer_copy(leaf)
        if entry.function == _FEATURES:
            entry.ecx |= _ECX_HYPERVISOR
            if tsc_deadline:
                entry.ecx |= _ECX_TSC_DEADLINE
            entry.ebx = entry.ebx & 0x00FFFFFF | apic_id << _EBX_APIC_ID_SHIFT
        elif entry.function in (_TOPOLOGY, _TOPOLOGY_V2):
            entry.edx = apic_id
        leaves.append(entry)
    return leaves
