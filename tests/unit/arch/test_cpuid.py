"""CPUID for one vCPU: its own APIC id in every leaf that tells one, and nothing of the host's taken away."""

from __future__ import annotations

import pytest

from vmservice.arch.x86_64.cpuid import physical_address_bits, vcpu_cpuid
from vmservice.kvm.abi import CPUID_ENTRY

Leaf = tuple[int, int, int, int, int, int, int]

HOST: list[Leaf] = [
    (0x0, 0, 0, 0x1F, 1, 2, 3),
    (0x1, 0, 0, 0x306A9, 0x05_10_08_00, 0x0000_0001, 0x1FABFBFF),
    (0xB, 0, 1, 1, 2, 0x100, 5),
    (0xB, 1, 1, 4, 8, 0x201, 5),
    (0x1F, 0, 1, 1, 2, 0x100, 5),
    (0x40000000, 0, 0, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
]


def cpuid(apic_id: int, tsc_deadline: bool = True) -> dict[tuple[int, int], Leaf]:
    supported = b"".join(CPUID_ENTRY.pack(*leaf) for leaf in HOST)
    leaves = vcpu_cpuid(supported, apic_id, tsc_deadline=tsc_deadline)
    return {(leaf[0], leaf[1]): leaf for leaf in CPUID_ENTRY.iter_unpack(leaves)}


@pytest.mark.parametrize("apic_id", [0, 1, 253])
def test_the_apic_id_is_in_leaves_1_b_and_1f(apic_id: int) -> None:
    """Cloud Hypervisor of December 2019 left leaf 1 and leaf 0x1f with the host's id."""
    leaves = cpuid(apic_id)
    assert leaves[0x1, 0][4] == apic_id << 24 | 0x10_08_00
    assert leaves[0xB, 0][6] == leaves[0xB, 1][6] == leaves[0x1F, 0][6] == apic_id


@pytest.mark.parametrize(("tsc_deadline", "ecx"), [(True, 1 | 1 << 24 | 1 << 31), (False, 1 | 1 << 31)])
def test_the_hypervisor_bit_and_the_timer_that_the_local_apic_has(tsc_deadline: bool, ecx: int) -> None:
    assert cpuid(0, tsc_deadline)[0x1, 0][5] == ecx


def test_every_other_leaf_is_the_hosts() -> None:
    leaves = cpuid(7)
    assert leaves[0x0, 0] == HOST[0]
    assert leaves[0x40000000, 0] == HOST[5]
    assert len(leaves) == len(HOST)


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
    assert physical_address_bits(b"".join(CPUID_ENTRY.pack(*leaf) for leaf in [*HOST, *leaves])) == bits
