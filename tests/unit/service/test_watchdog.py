"""The manager's watchdog: who must answer before it gets its sign of life, and what is said of who does not."""

from __future__ import annotations

import asyncio
import threading
import time
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

TIMEOUT_SEC = 10.0
PERIOD_SEC = 0.1
PING = b"WATCHDOG=1"


class Recorded(Log):
    def __init__(self) -> None:
        super().__init__("demo", Outbox())
        self.lines: list[tuple[int, str]] = []

    def message(self, priority: int, text: str, message_id: str = "", **fields: str) -> None:
        self.lines.append((priority, text))


class Setup:
    """A watchdog in a loop, with a machine that answers as the test wants; the manager's end is `wait`."""

    def __init__(self, manager: Listener) -> None:
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
        self.watchdog = Watchdog(self.vm, self.log, self.notifier, 4 * PERIOD_SEC, self.well.set, self.dumped.append)

    def wait(self, wanted: Callable[[bytes], bool]) -> bytes:
        """The next datagram that is wanted, blocking the loop: from now on it does not answer."""
        deadline = time.monotonic() + TIMEOUT_SEC
        while time.monotonic() < deadline:
            if wanted(datagram := self.manager.receive()):
                return datagram
        raise AssertionError("it did not come")

    async def wait_in_thread(self, wanted: Callable[[bytes], bool]) -> bytes:
        return await asyncio.to_thread(self.wait, wanted)


def run(test: Callable[[Setup], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        with Listener() as manager:
            setup = Setup(manager)
            setup.watchdog.start()
            try:
                await test(setup)
            finally:
                setup.watchdog.stop()
                setup.outbox.close()

    asyncio.run(main())


def is_status(datagram: bytes) -> bool:
    return datagram.startswith(b"STATUS=")


def test_pings_go_on_while_all_is_well_paused_or_shut_down() -> None:
    async def test(setup: Setup) -> None:
        changes: list[Callable[[], None]] = [lambda: None, setup.vm.pause, setup.vm.shutdown]
        for change in changes:
            change()
            for _ in range(3):
                assert await setup.wait_in_thread(lambda _any: True) == PING
        assert setup.log.lines == []

    run(test)


def test_a_vcpu_that_does_not_answer_is_named_and_there_is_no_ping() -> None:
    async def test(setup: Setup) -> None:
        setup.machine.not_answering = ["vCPU 3", "the lock of the devices"]
        status = await setup.wait_in_thread(is_status)
        assert status == b"STATUS=no answer from vCPU 3, the lock of the devices"
        assert setup.manager.waiting() == []
        await asyncio.sleep(3 * PERIOD_SEC)
        assert setup.manager.waiting() == []
        ((priority, text),) = setup.log.lines
        assert priority == 3
        assert text.startswith("no answer from vCPU 3, the lock of the devices for 0.1 seconds; ")
        setup.machine.not_answering = []
        assert await setup.wait_in_thread(lambda _any: True) == PING
        assert await asyncio.to_thread(setup.well.wait, TIMEOUT_SEC)
        assert setup.watchdog.trouble == ""
        assert setup.log.lines[1:] == [(6, "everything answers again")]

    run(test)


def test_a_loop_that_hangs_is_named() -> None:
    async def test(setup: Setup) -> None:
        assert setup.wait(is_status) == b"STATUS=no answer from the event loop"
        assert await setup.wait_in_thread(PING.__eq__)

    run(test)


def test_a_machine_being_built_excuses_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(setup: Setup) -> None:
        monkeypatch.setattr(Vm, "building_until", time.monotonic() + TIMEOUT_SEC)
        for _ in range(5):
            assert setup.wait(lambda _any: True) == PING
        monkeypatch.setattr(Vm, "building_until", time.monotonic() - 1)
        assert setup.wait(is_status) == b"STATUS=no answer from the event loop"

    run(test)
