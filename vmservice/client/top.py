"""`vmservice top`: what the VMs that run take of the host, and what they do each second, in a table that is always new."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from vmservice.client import interrupts, output
from vmservice.client.bus import Bus, connected_bus
from vmservice.client.overview import Overview, overviews, with_cpu
from vmservice.client.rates import Rates, rates, totals
from vmservice.client.screen import Screen
from vmservice.client.several import tell
from vmservice.client.vms import LOOK_TIMEOUT_SEC
from vmservice.config.names import natural_key
from vmservice.errors import VmmError

# The first figures come after this long at most.
_FIRST_DELAY_SEC = 0.5

_HEADER = ("NAME", "STATE", "VCPUS", "CPU", "USED", "EXITS/S", "READ/S", "WRITTEN/S", "RECEIVED/S", "SENT/S")
_TO_THE_RIGHT = frozenset(_HEADER[3:])


@dataclass(frozen=True)
class Row:
    """One VM of the table."""

    vm: Overview
    rates: Rates


def _bytes_each_way(first: float | None, second: float | None) -> float:
    return (first or 0) + (second or 0)


# What the table may be sorted by; the most is first, and names go the other way.
ORDERS: dict[str, Callable[[Row], float]] = {
    "cpu": lambda row: round(row.vm.cpu_percent or 0, 1),  # as it is shown: two that look equal keep their places
    "memory": lambda row: row.vm.usage.memory_bytes or 0 if row.vm.usage is not None else 0,
    "exits": lambda row: row.rates.exits or 0,
    "disk": lambda row: _bytes_each_way(row.rates.disk_read, row.rates.disk_written),
    "network": lambda row: _bytes_each_way(row.rates.network_received, row.rates.network_sent),
    "name": lambda _row: 0,
}


def run_top(*, user: bool, delay_sec: float, order: str, once: bool, as_json: bool) -> int:
    """Show the table until the person has seen enough; once, over `delay_sec`, for programs and where there is no terminal."""
    if once or as_json or not sys.stdout.isatty():
        return _run_once(user=user, delay_sec=delay_sec, order=order, as_json=as_json)
    ended_by = interrupts.run(_run_live(user=user, delay_sec=delay_sec, order=order))
    if ended_by not in (0, signal.SIGINT):  # as the signal ends any program
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    return os.EX_OK


def _run_once(*, user: bool, delay_sec: float, order: str, as_json: bool) -> int:
    async def measure() -> list[Row]:
        async with connected_bus(user=user) as bus:
            survey = Survey(bus, delay_sec)
            await survey.look()
            await asyncio.sleep(delay_sec)
            return await survey.look()

    try:
        rows = interrupts.run(measure())
    except VmmError:
        if as_json:
            print("[]")
        raise
    rows = in_order(rows, order)
    if as_json:
        import json

        print(json.dumps([as_dict(row) for row in rows], indent=2))
    elif rows:
        print(table(rows, colours=output.colours_wanted(sys.stdout), width=output.width_of(sys.stdout)))
    else:
        tell("no VM is running")
    return os.EX_OK


async def _run_live(*, user: bool, delay_sec: float, order: str) -> int:
    """The number of the signal that ended it, 0 where none did."""
    rows: list[Row] = []

    def redraw() -> None:
        width, height = screen.size
        screen.draw(_page(in_order(rows, order), delay_sec, width, height))

    async with connected_bus(user=user) as bus:
        survey = Survey(bus, delay_sec)
        pause_sec = min(delay_sec, _FIRST_DELAY_SEC)
        screen = Screen(0, 1, redraw)
        with screen:
            ended = asyncio.ensure_future(screen.ended.wait())
            try:
                while not screen.ended.is_set():
                    began = asyncio.get_running_loop().time()
                    look = asyncio.ensure_future(survey.look())
                    await asyncio.wait({look, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not look.done():
                        look.cancel()
                        await asyncio.gather(look, return_exceptions=True)
                        break
                    rows = look.result()
                    redraw()
                    elapsed = asyncio.get_running_loop().time() - began
                    await asyncio.wait({ended}, timeout=max(pause_sec - elapsed, 0))
                    pause_sec = delay_sec
            finally:
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)
    return screen.signal


class Survey:
    """Looks at the VMs again and again. One that does not answer is waited for half of `delay_sec`, and no longer than others
    commands wait."""

    def __init__(self, bus: Bus, delay_sec: float) -> None:
        self._bus = bus
        self._limit_sec = min(max(delay_sec / 2, 0.1), LOOK_TIMEOUT_SEC)
        self._before: dict[str, tuple[Overview, dict[str, float]]] = {}

    async def look(self) -> list[Row]:
        """What runs now, with its figures since the look before; those of the first look are not known."""
        found = await overviews(self._bus, user=self._bus.user, everything=False, limit_sec=self._limit_sec)
        found = with_cpu({name: vm.usage for name, (vm, _) in self._before.items()}, found)
        now = {vm.name: (vm, totals(vm)) for vm in found}
        rows = []
        for vm, counted in now.values():
            before, counted_before = self._before.get(vm.name, (None, {}))
            is_same = before is not None and before.pid == vm.pid
            elapsed_sec = vm.taken_at - before.taken_at if before is not None and is_same else 0
            rows.append(Row(vm, rates(counted_before, counted, elapsed_sec)))
        self._before = now
        return rows


def in_order(rows: Sequence[Row], order: str) -> list[Row]:
    """Sorted by one of ORDERS; those that are equal, by their names."""
    by_name = sorted(rows, key=lambda row: natural_key(row.vm.name))
    return sorted(by_name, key=ORDERS[order], reverse=True)


def table(rows: Sequence[Row], *, colours: bool, width: int | None) -> str:
    return output.aligned(_HEADER, [_cells(row) for row in rows], to_the_right=_TO_THE_RIGHT, colours=colours, width=width)


def as_dict(row: Row) -> dict[str, object]:
    """For programs; the keys are always the same, and null is not known."""
    said = output.as_dict(row.vm)
    kept = ("name", "condition", "state", "vcpus", "max_vcpus", "memory", "cpu_percent", "cpu_sec", "memory_used")
    units = {name: "exits_per_sec" if name == "exits" else f"{name}_bytes_per_sec" for name in asdict(row.rates)}
    measured = {units[name]: round(value, 1) if value is not None else None for name, value in asdict(row.rates).items()}
    return {**{key: said[key] for key in kept}, **measured, "error": said["error"]}


def _page(rows: Sequence[Row], delay_sec: float, width: int, height: int) -> list[str]:
    """All lines of the screen."""
    cpu = sum(row.vm.cpu_percent or 0 for row in rows)
    used = sum(row.vm.usage.memory_bytes or 0 for row in rows if row.vm.usage is not None)
    count = "1 VM" if len(rows) == 1 else f"{len(rows)} VMs"
    head = f"{count}, CPU {output.percent(cpu)}, memory {output.size(used)}; every {delay_sec:g} s; q quits"
    room = max(height - 3, 1)
    shown = list(rows) if len(rows) <= room else list(rows)[: room - 1]
    lines = [head[:width], "", *table(shown, colours=output.colours_wanted(sys.stdout), width=width).splitlines()]
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown)} more"[:width])
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    vm, rate = row.vm, row.rates
    used = vm.usage.memory_bytes if vm.usage is not None else None
    return (
        vm.name,
        vm.condition or output.UNKNOWN,
        output.vcpus(vm),
        output.percent(vm.cpu_percent),
        output.size(used),
        output.NOTHING if rate.exits is None else f"{rate.exits:.0f}",
        *(_rate(value) for value in (rate.disk_read, rate.disk_written, rate.network_received, rate.network_sent)),
    )


def _rate(value: float | None) -> str:
    return output.NOTHING if value is None else output.size(value)
