"""Guest memory of every kind under a real Linux."""

from __future__ import annotations

import re

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.prepare import guest_config
from support.unit_vm import UnitVm


@pytest.mark.parametrize(
    "keys",
    [
        {"trixie": 'file = "/dev/shm"\nprefault = true', "bookworm": "hugepages = true\nprefault = true"},
        pytest.param({"trixie": 'file = "/dev/hugepages"', "bookworm": 'file = "/dev/shm"'}, marks=pytest.mark.long),
    ],
    ids=["prefault", "as it is touched"],
)
def test_memory_of_other_kinds(guests: dict[str, UnitVm], keys: dict[str, str]) -> None:
    """With a balloon, which gives back what can be given back of it; one of the two is of huge pages."""
    (host,) = {vm.host for vm in guests.values()}
    host.run("sysctl -q vm.nr_hugepages=160; chmod 1777 /dev/hugepages", check=True)
    try:
        for release, vm in guests.items():
            more = '[balloon]\nsize = "64M"\n'
            vm.configure(guest_config(release=release, memory_keys=keys[release] + "\n", more=more))
            vm.start()
        for release, vm in guests.items():
            vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
            mapped = host.run(f"cat /proc/{vm.main_pid()}/smaps", check=True).stdout
            has_huge = any(int(kib) for kib in re.findall(r"^(?:Private|Shared)_Hugetlb: +(\d+) kB", mapped, re.MULTILINE))
            assert has_huge == ("hugepages" in keys[release])
        for vm in guests.values():
            vm.stop()
            assert vm.show("Result") == "success"
    finally:
        host.run("sysctl -q vm.nr_hugepages=0")


def test_too_few_huge_pages_are_said(vm: UnitVm) -> None:
    vm.configure(guest_config(memory_keys="hugepages = true\n"))
    assert vm.host.run(f"systemctl start {vm.unit}").returncode != 0
    assert "vmservice: " not in vm.journal()
    assert re.search(r"cannot have 128 huge pages of 2 MiB .* 0 of this host's 0 are free; vm.nr_hugepages must", vm.journal())
    assert vm.show("ExecMainStatus") == "71"


@pytest.mark.long
def test_two_guests_share_pages(vm: UnitVm) -> None:
    """KSM; both run the same kernel and the same programs."""
    ksm = "/sys/kernel/mm/ksm"
    vm.host.run(f"echo 20000 > {ksm}/pages_to_scan; echo 1 > {ksm}/run", check=True)
    other = UnitVm(vm.host, f"{vm.name}b")
    try:
        for guest in (vm, other):
            guest.configure(guest_config(memory_keys="mergeable = true\n"))
            guest.start()
        for guest in (vm, other):
            guest.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
        # Kernel text alone is some 14 MiB.
        vm.host.run(
            f"timeout 120 sh -c 'until [ $(cat {ksm}/pages_sharing) -gt 3000 ]; do sleep 1; done'", timeout=150, check=True
        )
        assert "cannot be merged" not in vm.journal() + other.journal()
    finally:
        other.remove()
        vm.host.run(f"echo 0 > {ksm}/run")
