"""What a caller may cost the VM: floods, large calls, odd messages. The loop's timers go on, and other callers are answered."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from dbus_next import Message, Variant
from dbus_next.constants import MessageType
from dbus_next.signature import SignatureTree
from support.bus_client import CallFailed, client, flooders, served_vm
from support.private_bus import PrivateBus

from vmservice.control import dbus_transport
from vmservice.control.dbus_transport import BODY_LIMIT_BYTES, MESSAGES_A_TURN, Transport
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
            unpacked = await feed(data)
            assert (unpacked.signature, unpacked.body) == (odd, [])
            assert odd not in SignatureTree._cache

    asyncio.run(check())


async def feed(data: bytes) -> Message:
    """What the transport makes of these bytes."""
    import io

    unmarshaller = dbus_transport.BoundedUnmarshaller(io.BytesIO(data))
    return unmarshaller.unmarshall()


def test_messages_that_dbus_next_cannot_take_are_passed_over() -> None:
    """A type of message from the future, or a header field: neither ends the connection."""
    call = Message(destination="a.b", path="/", member="M", interface="a.b", signature="y", body=[7], serial=5)

    async def check() -> None:
        data = bytearray(call._marshall())
        assert (await feed(bytes(data))).body == [7]
        data[1] = 9
        assert (await feed(bytes(data))).message_type is MessageType.SIGNAL
        data = bytearray(call._marshall())
        member = data.index(b"\x03\x01s\0")
        data[member] = 77
        assert (await feed(bytes(data))).message_type is MessageType.SIGNAL

    asyncio.run(check())


def test_a_flood_does_not_starve_the_loop(bus: PrivateBus) -> None:
    """Calls without replies, as fast as the bus takes them, from several callers: a timer still fires, others are served."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as honest:
            flood = await flooders(bus.address, 3, 3000)
            begin = time.monotonic()
            assert await honest.get("demo", "State") == "created"
            assert time.monotonic() - begin < 8
            assert served.vm.state == "created"
            for flooder in flood:
                assert flooder.connected
                flooder.close()

    asyncio.run(check())


class Stub(Transport):
    """A transport whose messages come from a list, to count how many it takes in one turn."""

    def __init__(self, count: int) -> None:
        self.backlog = 0
        self.pending = count
        self.taken = 0
        self.turns: list[Any] = []
        self.removed = 0
        self._disconnected = False
        self._fd = -1
        self._writer: Any = type("Writer", (), {"messages": type("Queue", (), {"qsize": lambda _self: self.backlog})()})()
        self._loop: Any = self
        self._unmarshaller: Any = self
        self.message: Any = None

    def call_soon(self, turn: Any) -> None:
        self.turns.append(turn)

    def call_later(self, _delay: float, turn: Any) -> None:
        self.turns.append(turn)

    def add_reader(self, _fd: int, _reader: Any) -> None:
        self.removed -= 1

    def remove_reader(self, _fd: int) -> None:
        self.removed += 1

    def unmarshall(self) -> bool:
        self.pending -= 1
        return self.pending >= 0

    def _create_unmarshaller(self) -> Any:
        return self

    def _on_message(self, _message: Message) -> None:
        self.taken += 1


def test_a_turn_has_an_end() -> None:
    stub = Stub(MESSAGES_A_TURN + 1)
    stub._message_reader()
    assert stub.taken == MESSAGES_A_TURN
    (again,) = stub.turns
    again()
    assert stub.taken == MESSAGES_A_TURN + 1
    assert len(stub.turns) == 1, "nothing is left, so the socket's readiness starts the next turn"


def test_reading_waits_while_replies_pile_up() -> None:
    stub = Stub(10)
    stub.backlog = dbus_transport.UNSENT_LIMIT + 1
    stub._message_reader()
    assert (stub.taken, stub.removed) == (0, 1)
    stub.backlog = 0
    stub.turns.pop()()
    assert (stub.taken, stub.removed) == (10, 0)
