"""CPUID for one vCPU: its own APIC id, one package of cores without SMT whatever the host is, and nothing else taken away."""

from __future__ import annotations

import pytest

from vmservice.arch.x86_64.cpuid import physical_address_bits, vcpu_cpuid
from vmservice.kvm.abi import CPUID_ENTRY

Leaf = tuple[int, int, int, int, int, int, int]
Leaves = dict[tuple[int, int], Leaf]


def vendor(name: bytes) -> tuple[int, int, int]:
    """EBX, ECX, EDX of leaf 0."""
    ebx, edx, ecx = (int.from_bytes(name[start : start + 4], "little") for start in (0, 4, 8))
    return ebx, ecx, edx


# A host of two packages of eight cores with two threads each, so that whatever passes through is wrong for every guest here.
INTEL: list[Leaf] = [
    (0x0, 0, 0, 0x1F, *vendor(b"GenuineIntel")),
    (0x1, 0, 0, 0x306A9, 0x05_20_08_00, 0x0000_0001, 0x1FABFBFF),
    (0x4, 0, 1, 0x3C004121, 0x01C0003F, 0x3F, 0),  # L1 data, shared by two threads
    (0x4, 1, 1, 0x3C004122, 0x01C0003F, 0x3F, 0),
    (0x4, 2, 1, 0x3C004143, 0x01C0003F, 0x3FF, 0),
    (0x4, 3, 1, 0x3C07C163, 0x02C0003F, 0x3FFF, 4),  # L3, shared by all
    (0x4, 4, 1, 0, 0, 0, 0),
    (0xB, 0, 1, 1, 2, 0x100, 5),
    (0xB, 1, 1, 5, 16, 0x201, 5),
    (0xB, 2, 1, 0, 0, 2, 5),
    (0x1F, 0, 1, 1, 2, 0x100, 5),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
    (0x80000008, 0, 0, 0x3027, 0, 0, 0),
]
AMD: list[Leaf] = [
    (0x0, 0, 0, 0x10, *vendor(b"AuthenticAMD")),
    (0x1, 0, 0, 0xA20F10, 0x05_20_08_00, 0x0000_0001, 0x1FABFBFF),
    (0xB, 0, 1, 1, 2, 0x100, 5),
    (0xB, 1, 1, 5, 32, 0x201, 5),
    (0x80000001, 0, 0, 0xA20F10, 0, 1 << 22, 0),
    (0x80000008, 0, 0, 0x3030, 0xFF, 0x0000_501F, 0),
    (0x8000001D, 0, 1, 0x4121, 0x01C0003F, 0x3F, 0),
    (0x8000001D, 3, 1, 0x3C163, 0x03C0003F, 0x7FFF, 1),
    (0x8000001E, 0, 0, 5, 0x0102, 0x0101, 0),
    (0x80000026, 0, 1, 1, 2, 0x100, 5),
]


def cpuid(host: list[Leaf], apic_id: int = 0, vcpus: int = 1, *, tsc_deadline: bool = True) -> Leaves:
    supported = b"".join(CPUID_ENTRY.pack(*leaf) for leaf in host)
    leaves = vcpu_cpuid(supported, apic_id, vcpus, tsc_deadline=tsc_deadline)
    found = {(leaf[0], leaf[1]): leaf for leaf in CPUID_ENTRY.iter_unpack(leaves)}
    assert len(found) * CPUID_ENTRY.size == len(leaves), "a leaf is there twice"
    return found


@pytest.mark.parametrize("host", [INTEL, AMD], ids=["Intel", "AMD"])
@pytest.mark.parametrize("apic_id", [0, 1, 253])
def test_the_apic_id_is_wherever_one_is_told(host: list[Leaf], apic_id: int) -> None:
    """Cloud Hypervisor of December 2019 left leaf 1 and leaf 0x1f with the host's id."""
    leaves = cpuid(host, apic_id, 254)
    assert leaves[0x1, 0][4] >> 24 == apic_id
    assert {leaf[6] for (function, _), leaf in leaves.items() if function in (0xB, 0x1F)} == {apic_id}
    if host is AMD:
        assert leaves[0x8000001E, 0][3:5] == (apic_id, apic_id)


@pytest.mark.parametrize(("tsc_deadline", "ecx"), [(True, 1 | 1 << 24 | 1 << 31), (False, 1 | 1 << 31)])
def test_the_hypervisor_bit_and_the_timer_that_the_local_apic_has(tsc_deadline: bool, ecx: int) -> None:
    assert cpuid(INTEL, tsc_deadline=tsc_deadline)[0x1, 0][5] == ecx


def test_every_other_leaf_is_the_hosts() -> None:
    leaves = cpuid(INTEL, 3, 4)
    for leaf in (INTEL[0], INTEL[11], INTEL[12]):
        assert leaves[leaf[:2]] == leaf
    assert {function for function, _ in leaves} == {leaf[0] for leaf in INTEL}


@pytest.mark.parametrize(("vcpus", "bits"), [(1, 0), (2, 1), (4, 2), (12, 4), (254, 8)])
@pytest.mark.parametrize("host", [INTEL, AMD], ids=["Intel", "AMD"])
def test_one_package_of_cores_without_smt(host: list[Leaf], vcpus: int, bits: int) -> None:
    """Shifts and counts agree with the APIC ids 0 to vcpus - 1 in every leaf that a kernel may look at."""
    leaves = cpuid(host, 0, vcpus)
    for function in {leaf[0] for leaf in host} & {0xB, 0x1F}:
        assert leaves[function, 0][2:6] == (1, 0, 1, 0x100), "a thread a core"
        assert leaves[function, 1][2:6] == (1, bits, vcpus, 0x201), "all of them cores of one package"
        assert leaves[function, 2][2:6] == (1, 0, 0, 2)
    assert leaves[0x1, 0][4] >> 16 & 0xFF == min(1 << bits, 255)
    assert bool(leaves[0x1, 0][6] >> 28 & 1) == (vcpus > 1)
    last = vcpus - 1 >> bits
    assert last == 0, "the last vCPU is in package 0"


@pytest.mark.parametrize(("vcpus", "ids"), [(1, 1), (4, 4), (12, 16), (254, 256)])
def test_the_caches_of_an_intel_processor(vcpus: int, ids: int) -> None:
    leaves = cpuid(INTEL, 0, vcpus)
    sharing = [(leaves[0x4, index][3] >> 14 & 0xFFF) + 1 for index in range(4)]
    assert sharing == [1, 1, 1, ids], "what is not the last level is private"
    assert all((leaves[0x4, index][3] >> 26) + 1 == min(ids, 64) for index in range(4))
    assert leaves[0x4, 4] == INTEL[6]
    assert leaves[0x80000008, 0] == INTEL[12], "ECX is AMD's"


@pytest.mark.parametrize(("vcpus", "bits"), [(1, 0), (4, 2), (12, 4), (254, 8)])
def test_what_only_amd_says(vcpus: int, bits: int) -> None:
    leaves = cpuid(AMD, 0, vcpus)
    sizes = leaves[0x80000008, 0][5]
    assert (sizes & 0xFF, sizes >> 12 & 0xF) == (vcpus - 1, bits)
    assert bool(leaves[0x80000001, 0][5] >> 1 & 1) == (vcpus > 1)
    assert leaves[0x80000001, 0][5] & 1 << 22, "its other features stay"
    assert [(leaves[0x8000001D, index][3] >> 14 & 0xFFF) + 1 for index in (0, 3)] == [1, vcpus]
    assert leaves[0x8000001E, 0][4] >> 8 == 0, "one thread a core"
    assert leaves[0x8000001E, 0][5] == 0, "one node"
    assert leaves[0x80000026, 0][3:] == (0, 0, 0, 0)


BARE = [INTEL[0], INTEL[1]]


@pytest.mark.parametrize(
    ("leaves", "bits"),
    [
        ([], 36),
        ([(0x80000008, 0, 0, 0x3027, 0, 0, 0)], 39),
        ([(0x80000008, 0, 0, 0x3930, 0, 0, 0)], 48),
        # KVM's page tables reach 48 bits of the 52, or as far as all of them
        ([(0x80000008, 0, 0, 0x30_3934, 0, 0, 0)], 48),
        ([(0x80000008, 0, 0, 0x34_3930, 0, 0, 0)], 48),
        # memory encryption: not there, there, and counted by KVM already
        ([(0x80000008, 0, 0, 0x3030, 0, 0, 0), (0x8000001F, 0, 0, 0, 5 << 6 | 47, 0, 0)], 48),
        ([(0x80000008, 0, 0, 0x3030, 0, 0, 0), (0x8000001F, 0, 0, 1, 5 << 6 | 47, 0, 0)], 43),
        ([(0x80000008, 0, 0, 0x3030, 0, 0, 0), (0x8000001F, 0, 0, 0xF, 1 << 12 | 1 << 6, 0, 0)], 47),
        ([(0x80000008, 0, 0, 0x302B, 0, 0, 0), (0x8000001F, 0, 0, 1, 47, 0, 0)], 43),
    ],
)
def test_physical_address_bits(leaves: list[Leaf], bits: int) -> None:
    assert physical_address_bits(b"".join(CPUID_ENTRY.pack(*leaf) for leaf in [*BARE, *leaves])) == bits
