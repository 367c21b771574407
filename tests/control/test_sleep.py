"""The host's sleep, with a logind that the test plays: what is paused, what is resumed, and when the host may go to sleep."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from dbus_next import Message
from support.bus_client import TIMEOUT_SEC, client, open_fds
from support.clock import Clock
from support.mock_service import MockService, mock_service
from support.private_bus import PrivateBus

from vmservice.control import login
from vmservice.control.dbus_transport import Transport
from vmservice.control.login import LOGIN, MANAGER, PATH
from vmservice.service.journal import Log
from vmservice.service.outbox import Outbox
from vmservice.service.sleep import HostSleep
from vmservice.vm.events import EventQueue
from vmservice.vm.sim import SimMachine
from vmservice.vm.vm import Vm


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SEC):
        while not condition():
            await asyncio.sleep(0.005)


class Logind:
    """Gives locks as logind does: each is the writing end of a pipe whose other end tells when it was closed."""

    def __init__(self) -> None:
        self.service: MockService
        self.ends: list[int] = []
        self.refuse = ""

    def answer(self, call: Message) -> Message | None:
        if self.refuse:
            return Message.new_error(call, self.refuse, "not today")
        end, lock = os.pipe()
        self.ends.append(end)

        async def reply() -> None:
            try:
                await self.service.bus.send(Message.new_method_return(call, "h", [0], [lock]))
            finally:  # a service that leaves the bus may not get as far
                os.close(lock)

        self._task = asyncio.ensure_future(reply())
        return None

    def held(self) -> int:
        """How many locks there are."""
        return sum(1 for end in self.ends if not select.select([end], [], [], 0)[0])

    def say(self, *asleep: bool) -> None:
        for word in asleep:
            self.service.bus.send(Message.new_signal(PATH, MANAGER, "PrepareForSleep", "b", [word]))

    def close(self) -> None:
        for end in self.ends:
            os.close(end)


@asynccontextmanager
async def logind(address: str, refuse: str = "") -> AsyncIterator[Logind]:
    mock = Logind()
    mock.refuse = refuse
    async with mock_service(address, LOGIN, mock.answer) as mock.service:
        try:
            yield mock
        finally:
            mock.close()


class Sleeper:
    """A running VM, and what pauses it."""

    def __init__(self, address: str, log: list[str]) -> None:
        self.events = EventQueue()
        self.states: list[str] = []
        self.vm = Vm(
            name="demo",
            vcpus=1,
            max_vcpus=1,
            memory_bytes=1 << 20,
            build=lambda _: SimMachine(self.events, lambda _data: None, vcpus=1, max_vcpus=1),
            call_later=Clock().call_later,
        )
        self.log = Log("demo", Outbox())
        self.log.message = lambda _priority, text, *_rest, **_fields: log.append(text)  # type: ignore[method-assign]
        self.sleep = HostSleep(self.vm, address, self.log)
        self.vm.boot()
        self.vm.subscribe(lambda changes: self.states.append(str(changes["State"])))

    @property
    def locked(self) -> bool:
        return self.sleep._login.locked


@asynccontextmanager
async def sleeper(address: str, log: list[str] | None = None) -> AsyncIterator[Sleeper]:
    said: list[str] = [] if log is None else log
    made = Sleeper(address, said)
    task = asyncio.ensure_future(made.sleep.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert not made.locked
        made.vm.close()
        made.events.close()


def test_a_night(bus: PrivateBus) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            inhibit = await mock.service.asked("Inhibit")
            assert (inhibit.path, inhibit.interface, inhibit.signature) == (PATH, MANAGER, "ssss")
            assert inhibit.body[0::3] == ["sleep", "delay"]
            assert inhibit.body[1] == "vmservice demo"
            assert mock.held() == 1

            mock.say(True)
            await until(lambda: mock.held() == 0)
            assert guest.states == ["paused"], "paused before the lock is given back"
            mock.say(False)
            await until(lambda: mock.held() == 1)
            assert guest.states == ["paused", "running"]
            mock.say(True)
            await until(lambda: mock.held() == 0)
            assert guest.vm.state == "paused"
            mock.say(False)
            await until(lambda: mock.held() == 1)
            assert guest.vm.state == "running"

    before = open_fds()
    asyncio.run(check())
    assert open_fds() == before


def test_a_vm_that_its_operator_paused_stays_paused(bus: PrivateBus) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            guest.vm.pause()
            mock.say(True)
            await until(lambda: mock.held() == 0)
            mock.say(False)
            await until(lambda: mock.held() == 1)
            assert guest.states == ["paused"]

    asyncio.run(check())


def test_a_vm_that_was_touched_in_between_stays_as_it_is(bus: PrivateBus) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            mock.say(True)
            await until(lambda: mock.held() == 0)
            guest.vm.resume()
            guest.vm.pause()
            mock.say(False)
            await until(lambda: mock.held() == 1)
            assert guest.states == ["paused", "running", "paused"]

    asyncio.run(check())


@pytest.mark.parametrize(
    ("words", "states", "locks"),
    [
        ((True, False), [], 1),
        ((True, False, True), ["paused"], 0),
        ((False, False), [], 1),
        ((True, True), ["paused"], 0),
    ],
)
def test_words_that_come_in_together_are_one(bus: PrivateBus, words: tuple[bool, ...], states: list[str], locks: int) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            for word in words:
                guest.sleep._on_sleep(word)
            await until(lambda: not guest.sleep._queued)
            await until(lambda: mock.held() == locks)
            assert guest.states == states

    asyncio.run(check())


def test_a_lock_that_is_under_way_when_the_host_sleeps_again(bus: PrivateBus) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            for word in (True, False, True, False):
                guest.sleep._on_sleep(word)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            await until(lambda: guest.locked)
            await until(lambda: mock.held() == 1)
            assert guest.vm.state == "running"

    asyncio.run(check())


def test_nobody_else_can_say_that_the_host_sleeps(bus: PrivateBus) -> None:
    async def check() -> None:
        async with logind(bus.address) as mock, client(bus.address) as liar, sleeper(bus.address) as guest:
            await until(lambda: guest.locked)
            names = await liar.call(
                "", "ListNames", destination="org.freedesktop.DBus", path="/", interface="org.freedesktop.DBus"
            )
            for name in names:
                if name.startswith(":"):
                    for signal in (
                        Message.new_signal(PATH, MANAGER, "PrepareForSleep", "b", [True]),
                        Message.new_signal(
                            "/", "org.freedesktop.DBus", "NameOwnerChanged", "sss", [LOGIN, "", liar.bus.unique_name]
                        ),
                        Message.new_signal(PATH, MANAGER, "PrepareForSleep", "b", [True]),
                    ):
                        signal.destination = name
                        await liar.bus.send(signal)
            await liar.has_owner("demo")
            mock.say(False)
            await asyncio.sleep(0.1)
            assert guest.states == []
            assert guest.locked

    asyncio.run(check())


def test_descriptors_of_strangers_are_closed(bus: PrivateBus) -> None:
    """While the lock is being taken, the one moment when any can come. The lock comes all the same."""

    async def check() -> None:
        async with logind(bus.address) as mock, client(bus.address) as stranger:
            answer, mock.service.answer = mock.service.answer, lambda _call: None
            async with sleeper(bus.address) as guest:
                inhibit = await mock.service.asked("Inhibit")
                before = open_fds()
                for _ in range(5):
                    gift = os.open("/dev/null", os.O_RDONLY)
                    call = Message(
                        destination=inhibit.sender,
                        path="/",
                        interface="a.b",
                        member="C",
                        signature="h",
                        body=[0],
                        unix_fds=[gift],
                    )
                    reply = await stranger.bus.call(call)
                    assert reply.error_name == "org.freedesktop.DBus.Error.UnknownObject"
                    os.close(gift)
                await until(lambda: open_fds() == before)
                mock.service.answer = answer
                answer(inhibit)
                await until(lambda: guest.locked)
                assert mock.held() == 1

    asyncio.run(check())


def test_who_sends_too_many_descriptors_costs_us_the_lock_and_no_more(bus: PrivateBus) -> None:
    log: list[str] = []

    async def check() -> None:
        async with logind(bus.address) as mock, client(bus.address) as stranger:
            mock.service.answer = lambda _call: None
            async with sleeper(bus.address, log) as guest:
                inhibit = await mock.service.asked("Inhibit")
                gift = os.open("/dev/null", os.O_RDONLY)
                for _ in range(50):
                    signal = Message.new_signal("/", "a.b", "C", "h", [0], [gift])
                    signal.destination = inhibit.sender
                    await stranger.bus.send(signal)
                os.close(gift)
                await until(lambda: any("gives no sleep lock: the connection" in text for text in log))
                mock.say(True)
                await until(lambda: guest.vm.state == "paused")

    before = open_fds()
    asyncio.run(check())
    assert open_fds() == before


@pytest.mark.parametrize("refusal", ["org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.login1.OperationInProgress"])
def test_without_a_lock_the_vm_is_paused_all_the_same(bus: PrivateBus, refusal: str) -> None:
    log: list[str] = []

    async def check() -> None:
        async with logind(bus.address, refusal) as mock, sleeper(bus.address, log) as guest:
            for count in (1, 2, 3):
                await mock.service.asked("Inhibit", count)
                await until(lambda: guest.sleep._login._taking is not None and guest.sleep._login._taking.done())
                mock.say(True)
                await until(lambda: guest.vm.state == "paused")
                mock.say(False)
                await until(lambda: guest.vm.state == "running")
            assert len([text for text in log if "gives no sleep lock" in text]) == 1

    asyncio.run(check())


def test_a_logind_that_does_not_answer(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    connect = login._connect

    async def connect_and_hurry(transport: Transport) -> None:
        """From when only the lock has to be asked for."""
        await connect(transport)
        if transport._descriptors:
            monkeypatch.setattr(login, "TIMEOUT_SEC", 0.2)

    monkeypatch.setattr(login, "_connect", connect_and_hurry)

    async def check() -> None:
        async with logind(bus.address) as mock:
            mock.service.answer = lambda _call: None
            async with sleeper(bus.address, log) as guest:
                await until(lambda: any("gives no sleep lock: there was no answer in time;" in text for text in log))
                mock.say(True)
                await until(lambda: guest.vm.state == "paused")

    before = open_fds()
    asyncio.run(check())
    assert open_fds() == before


def test_logind_comes_later_and_restarts(bus: PrivateBus) -> None:
    log: list[str] = []

    async def check() -> None:
        async with sleeper(bus.address, log) as guest:
            await until(lambda: log == ["systemd-logind is not there: the VM is not paused when the host sleeps"])
            for _ in range(2):
                async with logind(bus.address) as mock:
                    await until(lambda: guest.locked)
                    assert mock.held() == 1
                    mock.say(True)
                    await until(lambda: mock.held() == 0)
                    mock.say(False)
                    await until(lambda: mock.held() == 1)
                await until(lambda: not guest.locked)
            assert guest.vm.state == "running"
            assert len([text for text in log if "logind" in text]) == 1

    asyncio.run(check())


def test_the_bus_restarts(own_bus: PrivateBus) -> None:
    async def check() -> None:
        async with sleeper(own_bus.address) as guest:
            for _ in range(2):
                own_bus.start()
                async with logind(own_bus.address) as mock:
                    await until(lambda: mock.held() == 1 and guest.locked)
                    mock.say(True)
                    await until(lambda: guest.vm.state == "paused")
                    mock.say(False)
                    await until(lambda: guest.vm.state == "running" and guest.locked)
                own_bus.kill()

    asyncio.run(check())


def test_a_vm_that_cannot_be_paused_does_not_keep_the_host_awake(bus: PrivateBus) -> None:
    log: list[str] = []

    async def check() -> None:
        async with logind(bus.address) as mock, sleeper(bus.address, log) as guest:
            await until(lambda: guest.locked)
            guest.vm.hold("it is being stopped")
            mock.say(True)
            await until(lambda: mock.held() == 0)
            assert guest.vm.state == "running"
            assert any("the VM cannot be paused: Pause is refused because it is being stopped" in text for text in log)

    asyncio.run(check())
