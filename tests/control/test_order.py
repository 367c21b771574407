"""The calls of one caller are acted on, and answered, in the order in which they came, whatever some of them wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from dbus_next import Message
from dbus_next.constants import MessageFlag
from support.bus_client import Served, client, served_vm
from support.mock_service import MockService, mock_service
from support.private_bus import PrivateBus
from support.raw_bus import RawCaller, get, get_all, verb

from vmservice.control import caller, turns
from vmservice.control.authority import POLKIT
from vmservice.control.turns import Turns

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"


@pytest.fixture
def nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "is_trusted", lambda _uid: False)


def yes(call: Message) -> Message:
    return Message.new_method_return(call, "(bba{ss})", [[True, False, {}]])


def no(call: Message) -> Message:
    return Message.new_method_return(call, "(bba{ss})", [[False, False, {}]])


def silent(_call: Message) -> None: ...


def turns_of(served: Served) -> Turns:
    assert served.joined is not None
    assert served.joined._turns is not None
    return served.joined._turns


def check(bus: PrivateBus, work: Callable[[RawCaller], object], known: bool = False) -> None:
    """`work` in a thread, with a caller that the VM has identified already or not."""

    async def run() -> None:
        async with served_vm(bus.address) as served:
            with RawCaller(bus.address) as raw:
                if known:
                    await asyncio.to_thread(raw.answers, verb("Resume"))
                served.vm.boot()
                await asyncio.to_thread(work, raw)

    asyncio.run(run())


@pytest.mark.parametrize("known", [True, False])
def test_a_read_sees_what_was_asked_for_before_it(bus: PrivateBus, known: bool) -> None:
    def work(raw: RawCaller) -> None:
        assert raw.answers(verb("Pause"), get(), verb("Resume"), get()) == [
            (0, None),
            (1, "paused"),
            (2, None),
            (3, "running"),
        ]

    check(bus, work, known)


@pytest.mark.parametrize("known", [True, False])
def test_everything_has_its_turn(bus: PrivateBus, known: bool) -> None:
    """Errors too, and what asks for nothing of the VM's: a Ping is how a client waits for what it has sent before."""

    def work(raw: RawCaller) -> None:
        before, (_, facts), *rest = raw.answers(
            verb("Pause"),
            get_all(),
            verb("Explode"),
            verb("Resize", signature="s", body=["x"]),
            verb("Ping", interface=PEER),
            verb("Introspect", interface=INTROSPECTABLE, path="/org"),
            verb("Boot", signature="ay", body=[bytes(100_000)]),
            get(),
        )
        assert before == (0, None)
        assert facts["State"] == "paused"
        assert [index for index, _ in rest] == [2, 3, 4, 5, 6, 7]
        assert [value for index, value in rest if index != 5] == [
            "UnknownMethod",
            "InvalidArgs",
            None,
            "LimitsExceeded",
            "paused",
        ]

    check(bus, work, known)


def test_many_calls_of_a_caller_that_is_not_known_yet(bus: PrivateBus) -> None:
    """As many as dbus-daemon lets one connection wait for."""

    def work(raw: RawCaller) -> None:
        calls = [call for _ in range(32) for call in (verb("Pause"), get(), verb("Resume"), get())]
        answers = raw.answers(*calls)
        assert answers == [(index, (None, "paused", None, "running")[index % 4]) for index in range(128)]

    check(bus, work)


@pytest.mark.usefixtures("nobody_trusted")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (yes, [(0, None), (1, "paused"), (2, None), (3, "running")]),
        (no, [(0, "AccessDenied"), (1, "running"), (2, "AccessDenied"), (3, "running")]),
    ],
)
def test_with_polkit(bus: PrivateBus, answer: Callable[[Message], Message], expected: list[object]) -> None:
    async def run() -> None:
        async with served_vm(bus.address) as served, mock_service(bus.address, POLKIT, answer):
            served.vm.boot()
            with RawCaller(bus.address) as raw:
                assert await asyncio.to_thread(raw.answers, verb("Pause"), get(), verb("Resume"), get()) == expected

    asyncio.run(run())


async def held(served: Served, count: int) -> None:
    async with asyncio.timeout(60):
        while sum(len(queue.waiting) for queue in turns_of(served)._queues.values()) != count:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("nobody_trusted")
def test_a_person_who_takes_their_time_holds_back_one_caller_only(bus: PrivateBus) -> None:
    interactive = {"flags": MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION}

    async def run() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as other,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            served.vm.boot()
            with RawCaller(bus.address) as raw:
                answers = asyncio.ensure_future(asyncio.to_thread(raw.answers, verb("Pause", **interactive), get(), get()))
                question = await polkit.asked("CheckAuthorization")
                await held(served, 3)
                assert await other.get("demo", "State") == "running"
                polkit.answer = yes
                await other.call("demo", "Resize", "y", [3])
                assert not answers.done()
                await polkit.bus.send(yes(question))
                assert await answers == [(0, None), (1, "paused"), (2, "paused")]
            await nothing_held(served, polkit)

    asyncio.run(run())


async def nothing_held(served: Served, polkit: MockService) -> None:
    async with asyncio.timeout(60):
        while turns_of(served)._queues:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("nobody_trusted")
def test_what_waits_behind_a_check_is_bounded(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes, for each caller: what is over is refused at once, and others are not concerned."""
    monkeypatch.setattr(turns, "WAITING_LIMIT_A_SENDER", 4)
    monkeypatch.setattr(turns, "WAITING_BYTES_A_SENDER", 100_000)

    async def run() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as other,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            for calls, limit in (([get()] * 5, 4), ([get("x" * 40_000)] * 3, 3)):
                with RawCaller(bus.address) as raw:
                    asked = len([call for call in polkit.calls if call.member == "CheckAuthorization"])
                    copies = [Message(**_fields(call)) for call in calls]
                    answers = asyncio.ensure_future(asyncio.to_thread(raw.answers, verb("Pause"), *copies))
                    question = await polkit.asked("CheckAuthorization", asked + 1)
                    await held(served, limit)
                    assert await other.get("demo", "State") == "created"
                    await polkit.bus.send(no(question))
                    found = await answers
                    over = [(index, "LimitsExceeded") for index in range(limit, len(calls) + 1)]
                    assert found[: len(over)] == over
                    assert found[len(over)] == (0, "AccessDenied")
                    assert [index for index, _ in found[len(over) :]] == list(range(limit))

    asyncio.run(run())


def _fields(call: Message) -> dict[str, object]:
    return {
        "destination": call.destination,
        "path": call.path,
        "interface": call.interface,
        "member": call.member,
        "signature": call.signature,
        "body": call.body,
    }


@pytest.mark.usefixtures("nobody_trusted")
def test_a_stranger_who_waits_keeps_nobody_from_being_identified(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of those who wait for the bus's word are not taken by those who wait for a person."""
    monkeypatch.setattr(turns, "WAITING_LIMIT", 2)

    async def run() -> None:
        async with served_vm(bus.address) as served, mock_service(bus.address, POLKIT, silent) as polkit:
            with RawCaller(bus.address) as raw, RawCaller(bus.address) as trusted:
                stranger = asyncio.ensure_future(asyncio.to_thread(raw.answers, verb("Pause"), get()))
                question = await polkit.asked("CheckAuthorization")
                monkeypatch.setattr(caller, "is_trusted", lambda _uid: True)
                assert await asyncio.to_thread(trusted.answers, verb("Boot"), get()) == [(0, None), (1, "running")]
                await polkit.bus.send(no(question))
                assert await stranger == [(0, "AccessDenied"), (1, "running")]
            await nothing_held(served, polkit)

    asyncio.run(run())


@pytest.mark.usefixtures("nobody_trusted")
def test_what_a_caller_had_waiting_goes_with_it(bus: PrivateBus) -> None:
    async def run() -> None:
        async with served_vm(bus.address) as served, mock_service(bus.address, POLKIT, silent) as polkit:
            async with client(bus.address) as caller:
                calls = [asyncio.ensure_future(caller.call("demo", "Boot")) for _ in range(3)]
                await polkit.asked("CheckAuthorization")
                await held(served, 3)
            for call in calls:
                call.cancel()
            await nothing_held(served, polkit)
            assert (await polkit.asked("CancelCheckAuthorization")).body == ["1"]
            assert len([call for call in polkit.calls if call.member == "CheckAuthorization"]) == 1
            assert served.vm.state == "created"

    asyncio.run(run())
