"""The network card by its driver: what it offers, its configuration, and each command of the control virtqueue."""

from __future__ import annotations

import struct

import pytest
from support.virtqueue import Driver, DriverQueue

from vmservice.devices.virtio import net
from vmservice.devices.virtio.net import ERR, OK, Net, NetState
from vmservice.devices.virtio.queue import Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

    from vmservice.devices.virtio.device import DriverPort

MAC = bytes.fromhex("02005e005301")
GUEST = net.GUEST_CSUM | net.GUEST_TSO4 | net.GUEST_TSO6 | net.GUEST_ECN


class Card(Net):
    """Its control virtqueue is served where it is notified; `applied` is what the host was told."""

    def __init__(self, pairs: int = 2, state: NetState | None = None) -> None:
        self.applied: list[tuple[int, int]] = []
        super().__init__(MAC, pairs, state or NetState(MAC, 1500), lambda *told: self.applied.append(told))

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        super().activate(queues, interrupt, features)
        self.control = queues[2 * self.pairs_in_use(features)]
        self.port = interrupt

    def notify(self, index: int) -> None:
        if self.serve(index, self.control):
            self.port.interrupt_queue(index)

    def config(self) -> tuple[bytes, int, int, int]:
        mac, status, pairs, mtu = struct.unpack("<6sHHH", self.read_config(0, 12))
        return mac, status, pairs, mtu


class Commands:
    def __init__(self, make_driver: MakeDriver, card: Card, features: int | None = None) -> None:
        self.card = card
        self.driver: Driver = make_driver(card)
        self.driver.start(features)
        self.index = len(self.driver.queues) - 1 if features is None else 2 * card.pairs_in_use(features)
        self.queue: DriverQueue = self.driver.queues[self.index]

    def ask(self, *parts: bytes) -> bytes:
        self.queue.add(parts, [1])
        self.driver.kick(self.index)
        ((_, _, answer),) = self.queue.take_used()
        return answer


def test_what_is_offered() -> None:
    always = net.MAC | net.STATUS | net.MRG_RXBUF | net.CTRL_VQ | net.CTRL_MAC_ADDR | net.GUEST_ANNOUNCE
    plain = Card(1, NetState(MAC, offloads=False))
    assert plain.features == always
    assert plain.queue_max_sizes == (256, 256, 64)
    host = net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.HOST_ECN
    full = Card(4)
    assert full.features == always | GUEST | host | net.CTRL_GUEST_OFFLOADS | net.MTU | net.MQ
    assert len(full.queue_max_sizes) == 9


def test_its_configuration() -> None:
    card = Card(2)
    assert card.config() == (MAC, net.LINK_UP, 2, 1500)
    assert card.read_config(10, 8) == struct.pack("<H", 1500) + bytes(6)
    card.write_config(0, bytes(6))
    assert card.config() == (MAC, net.LINK_UP, 2, 1500)


def test_the_driver_is_told_of_its_link(make_driver: MakeDriver) -> None:
    card = Card()
    card.set_link(False)
    commands = Commands(make_driver, card)
    assert card.config()[1] == 0
    card.set_link(True)
    card.set_link(True)
    assert (card.config()[1], commands.driver.interrupt.configs) == (net.LINK_UP, 1)


def test_a_driver_makes_itself_known(make_driver: MakeDriver) -> None:
    card = Card()
    card.announce()
    assert card.config()[1] == net.LINK_UP, "nobody listens yet"
    commands = Commands(make_driver, card)
    card.announce()
    assert (card.config()[1], commands.driver.interrupt.configs) == (net.LINK_UP | net.ANNOUNCE, 1)
    assert commands.ask(b"\3\0") == OK
    assert card.config()[1] == net.LINK_UP
    commands = Commands(make_driver, card, net.CTRL_VQ | net.STATUS | net.MQ)
    card.announce()
    assert card.config()[1] == net.LINK_UP
    assert commands.ask(b"\3\0") == ERR


def test_another_address(make_driver: MakeDriver) -> None:
    card = Card()
    commands = Commands(make_driver, card)
    for wrong in (b"\1\0\0\0\0\1", bytes(6), MAC[:5], MAC + b"\0"):
        assert commands.ask(b"\1\1", wrong) == ERR
    assert commands.ask(b"\1\1", b"\2\1\2\3\4\5") == OK
    assert card.config()[0] == b"\2\1\2\3\4\5"
    commands.driver.transport.write_status(0)
    assert card.config()[0] == MAC


def test_how_many_pairs_are_used(make_driver: MakeDriver) -> None:
    card = Card(3)
    commands = Commands(make_driver, card)
    assert card.applied == [(GUEST, 1)]
    for wrong in (0, 4, 0x8000):
        assert commands.ask(b"\4\0" + struct.pack("<H", wrong)) == ERR
    assert commands.ask(b"\4\0", b"\3\0") == OK
    assert card.applied == [(GUEST, 1), (GUEST, 3)]
    commands.driver.transport.write_status(0)
    assert card.applied[2:] == [(0, 1)]


def test_where_the_commands_are_without_several_pairs(make_driver: MakeDriver) -> None:
    card = Card(3)
    commands = Commands(make_driver, card, net.CTRL_VQ | net.CTRL_MAC_ADDR)
    assert commands.index == 2
    assert commands.ask(b"\1\1" + b"\2\1\2\3\4\5") == OK
    assert commands.ask(b"\4\0", b"\2\0") == ERR


def test_what_the_guest_takes(make_driver: MakeDriver) -> None:
    card = Card(1)
    commands = Commands(make_driver, card, net.CTRL_VQ | net.CTRL_GUEST_OFFLOADS | net.GUEST_CSUM | net.GUEST_TSO4)
    assert card.applied == [(net.GUEST_CSUM | net.GUEST_TSO4, 1)]
    for wrong in (net.GUEST_CSUM | net.GUEST_TSO6, net.GUEST_TSO4, 1 << 63):
        assert commands.ask(b"\5\0", struct.pack("<Q", wrong)) == ERR
    for chosen in (0, net.GUEST_CSUM, net.GUEST_CSUM | net.GUEST_TSO4):
        assert commands.ask(b"\5\0", struct.pack("<Q", chosen)) == OK
        assert card.applied[-1] == (chosen, 1)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (net.GUEST_TSO4 | net.GUEST_ECN, 0),
        (net.GUEST_CSUM | net.GUEST_ECN, net.GUEST_CSUM),
        (net.GUEST_CSUM | net.GUEST_TSO6 | net.GUEST_ECN, net.GUEST_CSUM | net.GUEST_TSO6 | net.GUEST_ECN),
    ],
)
def test_a_driver_that_takes_what_makes_no_sense_alone(make_driver: MakeDriver, chosen: int, told: int) -> None:
    card = Card(1)
    make_driver(card).start(chosen)
    assert card.applied == [(told, 1)]


@pytest.mark.parametrize("wrong", [b"\0\0\1", b"\2\0\1\0", b"\4\1\1\0", b"\xff\xff", b"\4\0\1", b"\4\0\1\0\0", bytes(4096)])
def test_unknown_commands_are_answered(make_driver: MakeDriver, wrong: bytes) -> None:
    commands = Commands(make_driver, Card())
    assert commands.ask(wrong) == ERR
    assert not commands.driver.is_broken


@pytest.mark.parametrize(("readable", "writable"), [([b"\4"], [1]), ([b"\4\0", b"\1\0"], []), ([], [1])])
def test_a_command_that_cannot_be_answered(make_driver: MakeDriver, readable: list[bytes], writable: list[int]) -> None:
    commands = Commands(make_driver, Card())
    commands.queue.add(readable, writable)
    commands.driver.kick(commands.index)
    assert commands.driver.is_broken
    assert "no room for its answer, or says nothing" in commands.driver.warnings[0]
