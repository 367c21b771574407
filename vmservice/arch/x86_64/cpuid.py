"""CPUID leaves for one vCPU: what KVM supports, with this machine's own facts laid over (Intel SDM vol. 2A, CPUID)."""

from __future__ import annotations

from vmservice.kvm.abi import CPUID_ENTRY

_VENDOR = 0x0
_FEATURES = 0x1
_CACHES_INTEL = 0x4
_TOPOLOGY = 0xB
_TOPOLOGY_V2 = 0x1F
_FEATURES_AMD = 0x8000_0001
_ADDRESS_SIZES = 0x8000_0008
_CACHES_AMD = 0x8000_001D
_TOPOLOGY_AMD = 0x8000_001E
_MEMORY_ENCRYPTION = 0x8000_001F
_TOPOLOGY_AMD_V2 = 0x8000_0026

_SIGNIFICANT_INDEX = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX

_ECX_TSC_DEADLINE = 1 << 24
_ECX_HYPERVISOR = 1 << 31
_EDX_HTT = 1 << 28
_ECX_CMP_LEGACY = 1 << 1

_EBX_LOGICAL_SHIFT = 16
_EBX_APIC_ID_SHIFT = 24

# Leaves 4 and 0x8000001d: bits 7:5 the level, 25:14 how many share it less one; leaf 4 also 31:26 cores less one.
_CACHE_LEVEL_SHIFT = 5
_CACHE_SHARING_SHIFT = 14
_CACHE_SHARING_MASK = 0xFFF << _CACHE_SHARING_SHIFT
_CACHE_CORES_SHIFT = 26
_CACHE_CORES_MAX = 63
_LAST_LEVEL = 3

_LEVEL_SMT = 1 << 8
_LEVEL_CORE = 2 << 8

_AMD = (b"AuthenticAMD", b"HygonGenuine")

_ADDRESS_BITS_UNSAID = 36
_EAX_SME = 1 << 0


def vcpu_cpuid(supported: bytes, apic_id: int, vcpus: int, *, tsc_deadline: bool) -> bytes:
    """`supported` for the vCPU with `apic_id`, 0 to 253, in a machine that may have up to `vcpus`.

    Both are consecutive struct kvm_cpuid_entry2. The topology is this machine's, whatever the host's is: one package, each vCPU
    a core of its own, no SMT, the caches below the third level private. Without this a guest may take the host's shifts to its
    own APIC ids and see packages or siblings that are not there. `tsc_deadline` says whether the in-kernel local APIC has that
    timer mode; KVM_GET_SUPPORTED_CPUID never claims it.
    """
    machine = _Topology(apic_id, vcpus, is_amd=_vendor(supported) in _AMD)
    leaves: list[bytes] = []
    said: set[int] = set()
    for function, index, flags, eax, ebx, ecx, edx in CPUID_ENTRY.iter_unpack(supported):
        if function in (_TOPOLOGY, _TOPOLOGY_V2):
            if function not in said:
                said.add(function)
                leaves += machine.levels(function)
            continue
        more = _ECX_HYPERVISOR | (_ECX_TSC_DEADLINE if tsc_deadline else 0) if function == _FEATURES else 0
        leaves.append(CPUID_ENTRY.pack(function, index, flags, *machine.leaf(function, eax, ebx, ecx | more, edx)))
    return b"".join(leaves)


def _vendor(supported: bytes) -> bytes:
    for function, _index, _flags, _eax, ebx, ecx, edx in CPUID_ENTRY.iter_unpack(supported):
        if function == _VENDOR:
            return b"".join(register.to_bytes(4, "little") for register in (ebx, edx, ecx))
    return b""


class _Topology:
    """What the leaves say of where the vCPU with `apic_id` is among `vcpus`."""

    def __init__(self, apic_id: int, vcpus: int, *, is_amd: bool) -> None:
        self._apic_id = apic_id
        self._vcpus = vcpus
        self._is_amd = is_amd
        self._id_bits = (vcpus - 1).bit_length()  # of an APIC id, which tell cores apart

    def levels(self, function: int) -> list[bytes]:
        """Leaves 0xb and 0x1f: a thread a core, the cores, and the end (Intel SDM vol. 2A, CPUID)."""
        rows = ((0, 1, _LEVEL_SMT), (self._id_bits, self._vcpus, _LEVEL_CORE), (0, 0, 0))
        return [
            CPUID_ENTRY.pack(function, index, _SIGNIFICANT_INDEX, shift, count, level | index, self._apic_id)
            for index, (shift, count, level) in enumerate(rows)
        ]

    def leaf(self, function: int, eax: int, ebx: int, ecx: int, edx: int) -> tuple[int, int, int, int]:
        """The four registers, which are returned as they are where they say nothing of the topology."""
        if function == _FEATURES:
            ids = min(1 << self._id_bits, 0xFF)
            ebx = ebx & 0xFFFF | ids << _EBX_LOGICAL_SHIFT | self._apic_id << _EBX_APIC_ID_SHIFT
            edx = edx | _EDX_HTT if self._vcpus > 1 else edx & ~_EDX_HTT
        elif function == _CACHES_INTEL and eax & 0x1F:
            cores = min((1 << self._id_bits) - 1, _CACHE_CORES_MAX)
            eax = self._cache(eax, (1 << self._id_bits) - 1) & (1 << _CACHE_CORES_SHIFT) - 1 | cores << _CACHE_CORES_SHIFT
        elif function == _FEATURES_AMD and self._is_amd:
            ecx = ecx | _ECX_CMP_LEGACY if self._vcpus > 1 else ecx & ~_ECX_CMP_LEGACY
        elif function == _ADDRESS_SIZES and self._is_amd:  # AMD APM vol. 3, E.4.7
            ecx = ecx & ~0xF0FF | self._id_bits << 12 | self._vcpus - 1
        elif function == _CACHES_AMD and eax & 0x1F:
            eax = self._cache(eax, self._vcpus - 1)
        elif function == _TOPOLOGY_AMD:  # AMD APM vol. 3, E.4.16: extended APIC id; core id, threads a core less one; node
            eax, ebx, ecx, edx = self._apic_id, self._apic_id & 0xFF, 0, 0
        elif function == _TOPOLOGY_AMD_V2:  # no levels: the leaves before it have them
            eax = ebx = ecx = edx = 0
        return eax, ebx, ecx, edx

    @staticmethod
    def _cache(eax: int, all_but_one: int) -> int:
        """Register EAX of a cache's leaf: the last level is everybody's, the others are private."""
        sharing = all_but_one if eax >> _CACHE_LEVEL_SHIFT & 7 == _LAST_LEVEL else 0
        return eax & ~_CACHE_SHARING_MASK | sharing << _CACHE_SHARING_SHIFT


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
