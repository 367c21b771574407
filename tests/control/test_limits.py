"""What a caller may cost the VM: floods, large calls, odd messages. The loop's timers go on, and other callers are answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dbus_next import Message, Variant
from dbus_next.constants import MessageType
from dbus_next.signature import SignatureTree
from support.bus_client import CallFailed, client, flooders, served_vm
from support.private_bus import PrivateBus

from vmservice.control import dbus_transport
from vmservice.control.dbus_message import BODY_LIMIT_BYTES, MessageReader, message_bytes, packed
from vmservice.control.dbus_transport import MESSAGES_A_TURN, Transport
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name

LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"


def test_a_large_call_is_refused_without_being_unpacked(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            with pytest.raises(CallFailed) as refused:
                await caller.call("demo", "Boot", "ay", [bytes(4 << 20)])
            assert refused.value.name == LIMITS_EXCEEDED
            assert str(BODY_LIMIT_BYTES) in refused.value.text
            with pytest.raises(CallFailed) as refused:
                await caller.call("demo", "Boot", path="/" + "a" * 100_000)
            assert refused.value.name == LIMITS_EXCEEDED
            assert await caller.get("demo", "State") == "created"

    asyncio.run(check())


def test_signatures_of_callers_are_not_collected(bus: PrivateBus) -> None:
    """dbus-next keeps every signature that it has seen, for ever."""

    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            before = set(SignatureTree._cache)
            odd = "(yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy)"
            raw = Message(
                destination=bus_name("demo"),
                path=OBJECT_PATH,
                interface=INTERFACE,
                member="Boot",
                signature=odd,
                body=[[1] * 32],
            )
            assert (await caller.bus.call(raw)).error_name == "org.freedesktop.DBus.Error.InvalidArgs"
            inner = Variant("a(yyyyyyyyyyyyy)", [])
            reply = await caller.bus.call(
                Message(
                    destination=bus_name("demo"),
                    path=OBJECT_PATH,
                    interface="org.freedesktop.DBus.Properties",
                    member="Set",
                    signature="ssv",
                    body=[INTERFACE, "State", inner],
                )
            )
            assert reply.error_name == "org.freedesktop.DBus.Error.PropertyReadOnly"
            # The client is in this process: what it put there itself is taken out before the bytes are read again.
            data = raw._marshall()
            for signature in set(SignatureTree._cache) - before:
                del SignatureTree._cache[signature]
            unpacked = feed(bytes(data))
            assert (unpacked.signature, unpacked.body) == (odd, [])
            assert odd not in SignatureTree._cache

    asyncio.run(check())


def feed(data: bytes) -> Message:
    """What the transport makes of these bytes."""
    assert message_bytes(data) == len(data)
    return MessageReader().read(data)


def test_messages_that_dbus_next_cannot_take_are_passed_over() -> None:
    """A type of message from the future, or a header field: neither ends the connection."""
    call = Message(destination="a.b", path="/", member="M", interface="a.b", signature="y", body=[7], serial=5)

    data = bytearray(call._marshall())
    assert feed(bytes(data)).body == [7]
    data[1] = 9
    assert feed(bytes(data)).message_type is MessageType.SIGNAL
    data = bytearray(call._marshall())
    member = data.index(b"\x03\x01s\0")
    data[member] = 77
    assert feed(bytes(data)).message_type is MessageType.SIGNAL


def test_a_flood_does_not_starve_the_loop(bus: PrivateBus) -> None:
    """Calls without replies, as fast as the bus takes them, from several callers: a timer still fires, others are served."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as honest:
            flood = await flooders(bus.address, 3, 3000)
            assert await honest.get("demo", "State") == "created"
            assert served.vm.state == "created"
            for flooder in flood:
                assert flooder.connected
                flooder.close()

    asyncio.run(check())


class Turns(Transport):
    """A transport beside any bus, to count how many messages it takes in one turn; the test is its event loop."""

    def __init__(self, count: int) -> None:
        self.taken = 0
        self.turns: list[Any] = []
        self.removed = 0
        self.disconnected: Any = type("Future", (), {"done": lambda _self: False})()
        self._fd = -1
        self._loop: Any = self
        self._descriptors = False
        signal = Message.new_signal("/", "a.b", "C")
        signal.serial = 1
        self._received = bytearray(packed(signal) * count)
        self._received_fds = []
        self._unsent: Any = []
        self._sock: Any = self

    def call_soon(self, turn: Any) -> None:
        self.turns.append(turn)

    def call_later(self, _delay: float, turn: Any) -> None:
        self.turns.append(turn)

    def add_reader(self, _fd: int, _reader: Any) -> None:
        self.removed -= 1

    def remove_reader(self, _fd: int) -> None:
        self.removed += 1

    def recv(self, _size: int) -> bytes:
        raise BlockingIOError

    def _act_on(self, _message: Message) -> None:
        self.taken += 1


def test_a_turn_has_an_end() -> None:
    transport = Turns(MESSAGES_A_TURN + 1)
    transport._turn()
    assert transport.taken == MESSAGES_A_TURN
    (again,) = transport.turns
    again()
    assert transport.taken == MESSAGES_A_TURN + 1
    assert len(transport.turns) == 1, "nothing is left, so the socket's readiness starts the next turn"


def test_reading_waits_while_replies_pile_up() -> None:
    transport = Turns(10)
    transport._unsent = range(dbus_transport.UNSENT_LIMIT + 1)
    transport._turn()
    assert (transport.taken, transport.removed) == (0, 1)
    transport._unsent = ()
    transport.turns.pop()()
    assert (transport.taken, transport.removed) == (10, 0)
