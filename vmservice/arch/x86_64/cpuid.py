"""CPUID leaves for one vCPU: what KVM supports, with this machine's own facts laid over (Intel SDM vol. 2A, CPUID)."""

from __future__ import annotations

from vmservice.kvm.abi import CPUID_ENTRY

_FEATURES = 0x1
_TOPOLOGY = 0xB
_TOPOLOGY_V2 = 0x1F
_ADDRESS_SIZES = 0x8000_0008
_MEMORY_ENCRYPTION = 0x8000_001F

_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31

_EBX_APIC_ID_SHIFT = 24

_ADDRESS_BITS_UNSAID = 36
_EAX_SME = 1 << 0


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


def physical_address_bits(supported: bytes) -> int:
    """How many bits of a guest physical address this host's processors take; 36 where they do not say (Intel SDM vol. 2A).

    AMD's memory encryption (SME) takes some of them away while it is on (APM vol. 3, E.4.17); a KVM that has counted that
    already reports none. A newer one also says how far its page tables reach, where that is less (GuestPhysBits).
    """
    leaves: dict[int, tuple[int, ...]] = {leaf[0]: leaf for leaf in CPUID_ENTRY.iter_unpack(supported)}
    if _ADDRESS_SIZES not in leaves:
        return _ADDRESS_BITS_UNSAID
    sizes = leaves[_ADDRESS_SIZES][3]
    bits, reach = sizes & 0xFF, sizes >> 16 & 0xFF
    if _MEMORY_ENCRYPTION in leaves:
        _, _, _, eax, ebx, _, _ = leaves[_MEMORY_ENCRYPTION]
        if eax & _EAX_SME:
            bits -= ebx >> 6 & 0x3F
    return min(bits, reach) if reach else bits
