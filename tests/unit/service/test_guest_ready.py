"""What the VMM makes of what its guest says: readiness, status, the journal's fields; and of a guest that says nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
from support.guest_socket import UnixListener, say
from support.vm_bench import Bench

from vmservice.service import guest_ready
from vmservice.service.guest_ready import GuestReady
from vmservice.service.journal import Log
from vmservice.service.sd_notify import Notifier

TIMEOUT_SEC = 60.0


class Told:
    """Log and notifier at once."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, str]]] = []
        self.extended = 0

    def info(self, text: str) -> None:
        self.lines.append((text, {}))

    def message(self, _priority: int, text: str, **fields: str) -> None:
        self.lines.append((text, fields))

    def extend_timeout(self, _seconds: float) -> None:
        self.extended += 1


class Guest:
    def __init__(self, folder: Path, timeout_sec: int) -> None:
        self.bench = Bench(ready_by_guest=True)
        self.told = Told()
        self.gave_up: list[str] = []
        self.statuses: list[str] = []
        self.listener = UnixListener(folder / "notify")
        self.ready = GuestReady(
            self.bench.vm,
            self.listener,
            cast(Log, self.told),
            cast(Notifier, self.told),
            timeout_sec,
            changed=lambda: self.statuses.append(self.ready.status),
            give_up=self.gave_up.append,
        )

    async def say(self, text: str) -> None:
        await asyncio.to_thread(say, self.listener.path, text.encode())


async def until(look: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT_SEC):
        while not look():
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def guest(folder: Path, timeout_sec: int = 300, *, boot: bool = True) -> AsyncIterator[Guest]:
    made = Guest(folder, timeout_sec)
    if boot:
        made.bench.vm.boot()
    made.ready.start()
    try:
        yield made
    finally:
        made.ready.close()


def test_ready_is_a_property_that_ends_with_the_guest(tmp_path: Path) -> None:
    async def check() -> None:
        async with guest(tmp_path) as it:
            vm = it.bench.vm
            assert not vm.guest_ready
            await it.say("READY=1")
            await until(lambda: vm.guest_ready)
            vm.pause()
            vm.resume()
            assert vm.guest_ready
            vm.reboot()
            assert not vm.guest_ready
            await it.say("READY=1")
            await until(lambda: vm.guest_ready)
            vm.shutdown()
            assert not vm.guest_ready
            await it.say("READY=1")
            await it.say("STATUS=later")
            await until(lambda: it.ready.status == "guest: later")
            assert not vm.guest_ready, "there is no guest"
            assert [line for line, _ in it.told.lines] == ["the guest is ready"] * 2

    asyncio.run(check())


def test_the_status_follows_the_guest_but_not_each_word_of_it(tmp_path: Path) -> None:
    async def check() -> None:
        async with guest(tmp_path) as it:
            begin = asyncio.get_running_loop().time()
            for number in range(100):
                await it.say(f"STATUS=number {number}")
            await until(lambda: it.ready.status == "guest: number 99")
            assert it.statuses[0] == "guest: number 0"
            periods = (asyncio.get_running_loop().time() - begin) / guest_ready._STATUS_PERIOD_SEC
            assert len(it.statuses) <= 2 * (2 + periods)  # at once and at its end, in each
            await it.say("EXIT_STATUS=3\nX_SYSTEMD_SHUTDOWN=poweroff\nSTATUS=Powering off.")
            await until(lambda: it.ready.status == "guest: goes down: Powering off.")
            assert it.ready.exit_status == 3
            it.ready.forget()
            assert it.ready.status == ""
            assert vars(it.ready)["exit_status"] is None

    asyncio.run(check())


def test_fields_reach_the_journal_and_a_flood_of_them_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_ready, "_LINES_MAX", 5)
    monkeypatch.setattr(guest_ready, "_LINES_PERIOD_SEC", 0.3)

    async def check() -> None:
        async with guest(tmp_path) as it:
            await it.say("X_SYSTEMD_UNIT_ACTIVE=multi-user.target")
            fields = {"X_SYSTEMD_UNIT_ACTIVE": "multi-user.target"}
            await until(lambda: it.told.lines)
            assert it.told.lines == [("the guest says X_SYSTEMD_UNIT_ACTIVE=multi-user.target", fields)]
            async with asyncio.timeout(TIMEOUT_SEC):
                while not any("before without a line" in line for line, _ in it.told.lines):
                    before = len(it.told.lines)
                    await it.say("X_SYSTEMD_HOSTNAME=a")
                    assert len(it.told.lines) <= before + 1
            unsaid = next(line for line, _ in it.told.lines if "before without a line" in line)
            assert unsaid.startswith("the guest says X_SYSTEMD_HOSTNAME=a (")

    asyncio.run(check())


def test_who_is_never_ready_is_given_up_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_ready, "_EXTEND_PERIOD_SEC", 0.1)

    async def check() -> None:
        async with guest(tmp_path, 1) as it:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            await until(lambda: it.gave_up)
            assert it.gave_up == ["the guest has not said READY=1 within 1 second"]
            assert loop.time() - begin >= 0.9
            assert it.told.extended

    asyncio.run(check())


def test_time_in_which_the_guest_does_not_run_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_ready, "_EXTEND_PERIOD_SEC", 0.01)

    async def check() -> None:
        async with guest(tmp_path, 1, boot=False) as it:
            await until(lambda: it.told.extended > 120)
            assert it.gave_up == []
            it.bench.vm.boot()
            await until(lambda: it.gave_up)

    asyncio.run(check())


def test_nobody_waits_any_more_when_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_ready, "_EXTEND_PERIOD_SEC", 0.05)

    async def check() -> None:
        async with guest(tmp_path) as it:
            await it.say("READY=1")
            await until(lambda: it.bench.vm.guest_ready)
            extended = it.told.extended
            await it.say("STATUS=a")
            await until(lambda: it.ready.status)
            await asyncio.sleep(0.3)  # six periods
            assert it.told.extended == extended
            assert it.gave_up == []

    asyncio.run(check())
