"""The CPU hotplug registers, driven as the AML drives them."""

from __future__ import annotations

import pytest

from vmservice.devices.cpu_hotplug import (
    EJECT,
    ENABLED,
    FLAGS,
    INSERTING,
    REMOVING,
    SELECT,
    CpuHotplug,
    CpuHotplugState,
)


class Host:
    """The device with two of four vCPUs, and what it told the host."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.ejected: list[int] = []
        self.state = CpuHotplugState(2, 4)
        self.device = CpuHotplug(self.state, self.taken.append, self.ejected.append)

    def flags(self, vcpu: int) -> int:
        self.device.write(SELECT, vcpu.to_bytes(4, "little"))
        return self.device.read(FLAGS, 1)[0]

    def set_flag(self, vcpu: int, value: int) -> None:
        self.device.write(SELECT, vcpu.to_bytes(4, "little"))
        self.device.write(FLAGS, bytes((value,)))


def test_present_vcpus_are_enabled_and_others_are_not() -> None:
    host = Host()
    assert [host.flags(vcpu) for vcpu in range(5)] == [ENABLED, ENABLED, 0, 0, 0]


def test_the_selection_can_be_read_back() -> None:
    host = Host()
    host.device.write(SELECT, b"\x03\0\0\0")
    assert host.device.read(SELECT, 4) == b"\x03\0\0\0"
    assert host.device.read(SELECT, 8) == b"\x03\0\0\0\0\0\0\0"


def test_a_new_vcpu_is_announced_until_the_guest_has_seen_it() -> None:
    host = Host()
    host.device.insert(2)
    assert host.flags(2) == ENABLED | INSERTING
    host.set_flag(2, INSERTING)
    assert host.flags(2) == ENABLED
    assert host.taken == [2]
    host.set_flag(2, INSERTING)
    assert host.taken == [2], "an acknowledgement of nothing is nothing"


def test_a_vcpu_is_given_back_when_asked_for() -> None:
    host = Host()
    host.device.request_removal(1)
    assert host.flags(1) == ENABLED | REMOVING
    host.set_flag(1, REMOVING)
    assert host.flags(1) == ENABLED, "the guest has seen the wish; the vCPU is still there"
    host.set_flag(1, EJECT)
    assert host.flags(1) == 0
    assert host.ejected == [1]
    host.set_flag(1, EJECT)
    assert host.ejected == [1]


@pytest.mark.parametrize("vcpu", [0, 1, 2, 4, 0xFFFFFFFF])
def test_what_nobody_wants_back_stays(vcpu: int) -> None:
    """A guest that ejects by itself would leave the host with a vCPU that it still counts; without vCPU 0 nothing runs."""
    host = Host()
    host.set_flag(vcpu, EJECT)
    host.set_flag(vcpu, 0xFF)
    assert host.ejected == []
    assert [host.flags(vcpu) for vcpu in range(4)] == [ENABLED, ENABLED, 0, 0]


@pytest.mark.parametrize("seen", [False, True])
def test_a_withdrawn_wish_can_still_be_granted(seen: bool) -> None:
    """A guest that has begun to give a vCPU back cannot be told to keep it: ignored, it would count one less than the host."""
    host = Host()
    host.device.request_removal(1)
    if seen:
        host.set_flag(1, REMOVING)
    assert host.device.withdraw() == []
    assert host.flags(1) == ENABLED, "nothing is asked of the guest any more"
    host.set_flag(1, EJECT)
    assert host.ejected == [1]
    assert (host.device.taken(), host.device.absent()) == ([0], [1, 2, 3])
    host.set_flag(1, EJECT)
    assert host.ejected == [1]


def test_a_wish_may_be_repeated() -> None:
    host = Host()
    for _ in range(2):
        host.device.request_removal(1)
        host.device.withdraw()
    host.device.request_removal(1)
    assert host.flags(1) == ENABLED | REMOVING
    host.set_flag(1, EJECT)
    host.device.insert(1)
    host.set_flag(1, EJECT)
    assert host.ejected == [1]


def test_a_vcpu_that_the_guest_did_not_notice_is_taken_back() -> None:
    host = Host()
    host.device.insert(2)
    assert (host.device.taken(), host.device.coming(), host.device.absent()) == ([0, 1], [2], [3])
    assert host.device.withdraw() == [2]
    assert (host.device.taken(), host.device.coming(), host.device.absent()) == ([0, 1], [], [2, 3])
    host.set_flag(2, INSERTING)
    assert host.taken == []


def test_a_vcpu_that_the_guest_has_noticed_stays() -> None:
    """Its _STA has said that it is there; it may be about to start it, and acknowledges it late."""
    host = Host()
    host.device.insert(2)
    host.device.insert(3)
    assert host.flags(2) == ENABLED | INSERTING
    assert host.device.withdraw() == [3]
    assert host.device.coming() == [2]
    host.set_flag(2, INSERTING)
    assert host.taken == [2]
    host.device.request_removal(2)
    host.set_flag(2, EJECT)
    host.device.insert(2)
    assert host.device.withdraw() == [2], "it has not noticed that it is there again"


@pytest.mark.parametrize("vcpu", [0, 2])
def test_the_host_cannot_remove_the_first_or_an_absent_vcpu(vcpu: int) -> None:
    with pytest.raises(ValueError, match=f"vCPU {vcpu} cannot be removed"):
        Host().device.request_removal(vcpu)


def test_the_host_cannot_insert_what_is_there() -> None:
    with pytest.raises(ValueError, match="vCPU 1 is there already"):
        Host().device.insert(1)


def test_a_device_from_a_saved_state_goes_on() -> None:
    host = Host()
    host.device.request_removal(1)
    ejected: list[int] = []
    again = CpuHotplug(host.state, host.taken.append, ejected.append)
    again.write(SELECT, b"\x01\0\0\0")
    again.write(FLAGS, bytes((EJECT,)))
    assert ejected == [1]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_accesses_of_other_widths_are_harmless(size: int) -> None:
    host = Host()
    for offset in range(12):
        assert len(host.device.read(offset, size)) == size
        if (offset, size) not in ((SELECT, 4), (FLAGS, 1)):
            host.device.write(offset, b"\xff" * size)
    assert host.state == CpuHotplugState(2, 4)
