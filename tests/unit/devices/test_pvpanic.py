"""The port of pvpanic (QEMU, docs/specs/pvpanic.rst)."""

from __future__ import annotations

import pytest

from vmservice.devices.pvpanic import PvPanic


class Bench:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.device = PvPanic(
            on_panic=lambda: self.said.append("panic"),
            on_crash_loaded=lambda: self.said.append("crash loaded"),
            on_shutdown=lambda: self.said.append("shutdown"),
        )


def test_reads_are_the_bits_that_it_knows() -> None:
    device = Bench().device
    for size in (1, 2, 4, 8):
        assert device.read(0, size) == b"\x07".ljust(size, b"\0")
        assert device.read(1, size) == bytes(size)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, []),
        (1, ["panic"]),
        (2, ["crash loaded"]),
        (4, ["shutdown"]),
        (0xF8, []),
        (0xFF, ["panic", "crash loaded", "shutdown"]),
    ],
)
def test_writes(value: int, said: list[str]) -> None:
    bench = Bench()
    bench.device.write(0, bytes((value,)))
    assert bench.said == said


def test_only_the_first_byte_at_the_port_counts() -> None:
    bench = Bench()
    bench.device.write(1, b"\x01")
    bench.device.write(0, b"")
    bench.device.write(0, b"\x00\x01\x01\x01")
    assert bench.said == []


def test_a_guest_that_repeats_itself_is_heard_once_until_it_runs_on() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.device.write(0, b"\x01")
        bench.device.write(0, b"\x02")
    assert bench.said == ["panic", "crash loaded"]
    bench.device.rearm()
    bench.device.write(0, b"\x01")
    assert bench.said == ["panic", "crash loaded", "panic"]
