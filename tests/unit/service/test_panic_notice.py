"""A guest whose console says that its kernel has panicked: people hear of it, unless the guest itself says more by then."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from support.vm_bench import Bench

from vmservice.service import panic_notice
from vmservice.service.journal import Log
from vmservice.service.panic_notice import PanicNotice


class Service:
    def __init__(self) -> None:
        self.bench = Bench().bring_to("running")
        self.warnings: list[str] = []
        self.statuses: list[str] = []
        self.is_told = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.notice = PanicNotice(self.bench.vm, cast(Log, self), loop, self._changed)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def _changed(self) -> None:
        self.statuses.append(self.notice.status)
        self.is_told.set()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panic_notice, "PATIENCE_SEC", 0.01)


def test_it_is_said_once() -> None:
    async def check() -> None:
        service = Service()
        service.bench.vm.on_panic_line("no init")
        service.bench.vm.on_panic_line("no init")
        await asyncio.wait_for(service.is_told.wait(), 10)
        service.bench.vm.on_panic_line("no init")
        await asyncio.sleep(0.1)
        assert service.statuses == ["its kernel has panicked, as its console says"]
        (warning,) = service.warnings
        assert "(no init)" in warning
        service.notice.forget()
        assert service.notice.status == ""

    asyncio.run(check())


def test_a_guest_that_ends_or_says_it_itself_is_not_spoken_for() -> None:
    async def check() -> None:
        service = Service()
        service.bench.vm.on_panic_line("no init")
        service.notice.forget()
        await asyncio.sleep(0.1)
        service.bench.vm.on_panic_line("no init")
        service.bench.vm.shutdown()
        await asyncio.sleep(0.1)
        assert (service.statuses, service.warnings) == ([], [])

    asyncio.run(check())
