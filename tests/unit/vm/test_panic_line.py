"""A kernel's panic is found in what a guest prints, however that is cut, and is told once."""

from __future__ import annotations

import pytest

from vmservice.vm.panic_line import PHRASE, REASON_LIMIT_BYTES, PanicLine

LINE = b"[    1.5] " + PHRASE + b"VFS: Unable to mount root fs\x1b[0m on unknown-block(0,0)\r\n"
REASON = "VFS: Unable to mount root fs on unknown-block(0,0)"
AROUND = (b"Kernel panic - not synced\nKernel pan", LINE, b"CPU: 0 PID: 1\n" + LINE)


class Bench:
    def __init__(self) -> None:
        self.written = b""
        self.told: list[str] = []
        self.console = PanicLine(self._write, self.told.append)

    def _write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize("size", [1, 2, 7, len(PHRASE) - 1, len(PHRASE), 64, 4096])
def test_it_is_found_however_it_is_cut(size: int) -> None:
    bench, printed = Bench(), b"".join(AROUND)
    for at in range(0, len(printed), size):
        bench.console.write(printed[at : at + size])
    assert bench.told == [REASON], "not once"
    assert bench.written == printed


def test_it_is_told_when_its_line_is_whole_or_too_long() -> None:
    bench = Bench()
    bench.console.write(PHRASE + b"x")
    assert bench.told == []
    bench.console.write(b"x" * REASON_LIMIT_BYTES)
    assert bench.told == ["x" * REASON_LIMIT_BYTES]


def test_what_only_begins_like_it_is_none() -> None:
    bench = Bench()
    for _ in range(100):
        bench.console.write(PHRASE[:-1] + b"\n")
    assert bench.told == []
    assert len(bench.console._seen) < len(PHRASE)
