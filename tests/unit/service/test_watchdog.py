"""The manager's watchdog: who must answer before it gets its sign of life, and what is said of who does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.clock import Clock
from support.datagrams import Listener
from support.journal_log import deliver_to, notification
from support.machines import RecordingMachine

from vmservice.service.journal import Log
from vmservice.service.outbox import Outbox
from vmservice.service.sd_notify import Notifier
from vmservice.service.watchdog import Watchdog
from vmservice.vm.vm import Vm

TIMEOUT_SEC = 60.0
# So long that the thread does not look by itself: a busy machine would hold up the loop for longer than a short one.
PERIOD_SEC = 600.0
PING = b"WATCHDOG=1"


class Recorded(Log):
    def __init__(self) -> None:
        super().__init__("demo", Outbox())
        self.lines: list[tuple[int, str]] = []

    def message(self, priority: int, text: str, message_id: str = "", **fields: str) -> None:
        self.lines.append((priority, text))


class Setup:
    """A watchdog in a loop, with a machine that answers as the test wants."""

    def __init__(self, manager: Listener, period_sec: float) -> None:
        self.manager = manager
        self.machine = RecordingMachine()
        self.vm = Vm(
            name="demo",
            vcpus=1,
            max_vcpus=1,
            memory_bytes=1 << 20,
            build=lambda _vcpus: self.machine,
            call_later=Clock().call_later,
        )
        self.vm.boot()
        self.log = Recorded()
        self.well = threading.Event()
        self.dumped: list[str] = []
        self.outbox = Outbox()
        self.notifier = Notifier(self.log.warning, self.outbox, manager.path, deliver_to(manager.path, notification))
        self.outbox.start()
        self.watchdog = Watchdog(self.vm, self.log, self.notifier, 4 * period_sec, self.well.set, self.dumped.append)

    def look(self) -> bytes:
        """As the watchdog's thread looks when its period is over; what the manager is told first."""
        self.watchdog._look()
        return self.manager.receive()

    async def look_in_thread(self) -> bytes:
        """Once the loop has answered to the look before."""
        await asyncio.sleep(0)
        return await asyncio.to_thread(self.look)


def run(test: Callable[[Setup], Coroutine[Any, Any, None]], period_sec: float = PERIOD_SEC) -> None:
    async def main() -> None:
        with Listener() as manager:
            setup = Setup(manager, period_sec)
            setup.watchdog.start()
            try:
                assert await asyncio.to_thread(manager.receive) == PING
                await test(setup)
            finally:
                setup.watchdog.stop()
                setup.outbox.close()

    asyncio.run(main())


def test_the_thread_looks_every_period() -> None:
    async def test(setup: Setup) -> None:
        for _ in range(3):
            while await asyncio.to_thread(setup.manager.receive) != PING:  # a busy machine holds up the loop
                pass

    run(test, 0.05)


def test_pings_go_on_while_all_is_well_paused_or_shut_down() -> None:
    async def test(setup: Setup) -> None:
        changes: list[Callable[[], None]] = [lambda: None, setup.vm.pause, setup.vm.shutdown]
        for change in changes:
            change()
            for _ in range(3):
                assert await setup.look_in_thread() == PING
        assert setup.log.lines == []

    run(test)


def test_a_vcpu_that_does_not_answer_is_named_and_there_is_no_ping() -> None:
    async def test(setup: Setup) -> None:
        setup.machine.not_answering = ["vCPU 3", "the lock of the devices"]
        assert await setup.look_in_thread() == b"STATUS=no answer from vCPU 3, the lock of the devices"
        for _ in range(3):
            await asyncio.to_thread(setup.watchdog._look)
        ((priority, text),) = setup.log.lines
        assert priority == 3
        assert text.startswith("no answer from vCPU 3, the lock of the devices for 600 seconds; ")
        setup.machine.not_answering = []
        assert await setup.look_in_thread() == PING, "and nothing in between"
        assert await asyncio.to_thread(setup.well.wait, TIMEOUT_SEC)
        assert setup.manager.waiting() == []
        assert setup.watchdog.trouble == ""
        assert setup.log.lines[1:] == [(6, "everything answers again")]

    run(test)


def test_a_loop_that_hangs_is_named() -> None:
    async def test(setup: Setup) -> None:
        assert setup.look() == PING
        assert setup.look() == b"STATUS=no answer from the event loop"
        assert await setup.look_in_thread() == PING

    run(test)


def test_a_machine_being_built_excuses_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(setup: Setup) -> None:
        monkeypatch.setattr(Vm, "building_until", float("inf"))
        for _ in range(5):
            assert setup.look() == PING
        monkeypatch.setattr(Vm, "building_until", float("-inf"))
        assert setup.look() == b"STATUS=no answer from the event loop"

    run(test)
