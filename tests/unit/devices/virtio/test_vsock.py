"""virtio-vsock: its configuration space, and what a driver is told of connections that are gone."""

from __future__ import annotations

import pytest
from support.guest_ram import guest_ram
from support.virtio_cases import InlineVsock
from support.virtqueue import Driver

from vmservice.devices.virtio.transport_state import TransportState
from vmservice.devices.virtio.vsock import EVENT, Vsock, VsockState

TRANSPORT_RESET = bytes(4)


class Rig:
    def __init__(self) -> None:
        self.memory = guest_ram()
        self.device = InlineVsock(VsockState(0x1_0000_0003 & 0xFFFF_FFFF))
        self.driver = Driver(self.device, self.memory)
        self.queues = self.driver.start()

    def restored(self, cid: int) -> Rig:
        """The same driver, on a device that goes on from the state of the one before."""
        assert self.driver.transport.stop()
        device = InlineVsock(VsockState.from_values(self.device.state.values()))
        device.move(cid)
        state = TransportState.from_values(self.driver.transport.state.values())
        queues = self.driver.queues
        self.driver.transport.close()
        self.device, self.driver = device, Driver(device, self.memory, state=state)
        self.driver.queues = queues
        return self

    def make_room(self, size: int = 8) -> None:
        self.queues[EVENT].add([], [size])
        self.driver.kick(EVENT)

    def told(self) -> list[bytes]:
        return [data for _, _, data in self.queues[EVENT].take_used()]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_what_it_is(rig: Rig) -> None:
    read = rig.driver.transport.read_config
    assert read(0, 8) == b"\3\0\0\0\0\0\0\0"
    assert read(4, 8) == bytes(8)
    rig.driver.transport.write_config(0, b"\xff" * 8)
    assert read(0, 8) == b"\3\0\0\0\0\0\0\0"
    assert rig.device.device_type == 19
    assert len(rig.device.queue_max_sizes) == 3


def test_only_what_the_kernel_can_do_is_offered() -> None:
    assert Vsock(VsockState(3), 0xFFFF_FFFF_FFFF_FFFF).features == 1 << 1
    assert Vsock(VsockState(3), 1 << 32).features == 0


def test_nothing_is_said_without_a_reason(rig: Rig) -> None:
    rig.make_room()
    assert rig.told() == []


def test_a_driver_that_was_restored_is_told_once_that_its_connections_are_gone(rig: Rig) -> None:
    rig.make_room()
    rig.make_room()
    rig.restored(77)
    rig.driver.kick(EVENT)
    assert rig.told() == [TRANSPORT_RESET]
    assert rig.driver.interrupt.take() == [EVENT]
    assert rig.driver.transport.read_config(0, 8) == (77).to_bytes(8, "little")
    rig.driver.kick(EVENT)
    rig.make_room()
    assert rig.told() == []


def test_one_that_has_no_buffer_is_told_when_it_has_one(rig: Rig) -> None:
    rig.restored(3)
    rig.driver.kick(EVENT)
    assert rig.told() == []
    rig.restored(3)
    rig.make_room()
    assert rig.told() == [TRANSPORT_RESET]


def test_one_that_begins_anew_has_no_connections(rig: Rig) -> None:
    rig.restored(3)
    rig.queues = rig.driver.start()
    rig.make_room()
    assert rig.told() == []


def test_a_buffer_that_is_too_small_breaks_the_rules(rig: Rig) -> None:
    rig.restored(3)
    rig.make_room(3)
    assert rig.driver.is_broken
    assert "a buffer for an event has 3 bytes to write; an event has 4" in rig.driver.warnings[0]
