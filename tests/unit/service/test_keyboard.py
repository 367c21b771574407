"""What a person types: the terminal is raw while the VM runs and itself again afterwards, and there is a way out."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from support.movers import MoveNow
from support.process import CHECKOUT

from vmservice.host.consoles.socket import open_socket_console
from vmservice.service.keyboard import Keyboard

TIMEOUT_SEC = 60.0


class Typed:
    """A guest that takes up to `room` bytes in all."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.data = b""
        self.room = room
        self.escapes = 0

    def take(self, data: bytes) -> int:
        taken = data[: self.room - len(self.data)]
        self.data += taken
        return len(taken)

    def escape(self) -> None:
        self.escapes += 1


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(what a person has, what the VM has) of a pseudoterminal that is nobody's job."""
    controller, terminal = os.openpty()
    yield controller, terminal
    os.close(controller)
    os.close(terminal)


def run(coroutine: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_SEC))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_bytes_of_a_pipe_reach_the_guest_and_its_end_is_quiet() -> None:
    reader, writer = os.pipe()

    async def check() -> None:
        typed = Typed()
        keyboard = Keyboard(reader, typed.take, typed.escape)
        keyboard.start()
        os.write(writer, b"ls\n")
        await until(lambda: typed.data == b"ls\n")
        os.close(writer)
        await asyncio.sleep(0.05)
        keyboard.close()
        assert typed.escapes == 0

    run(check())
    os.close(reader)


def test_what_the_guest_does_not_take_is_offered_again() -> None:
    reader, writer = os.pipe()

    async def check() -> None:
        typed = Typed(room=3)
        keyboard = Keyboard(reader, typed.take, typed.escape)
        keyboard.start()
        os.write(writer, b"abcdef")
        await until(lambda: typed.data == b"abc")
        keyboard.retry()
        assert typed.data == b"abc"
        typed.room = 5
        keyboard.retry()
        typed.room = 100
        keyboard.retry()
        os.write(writer, b"gh")
        await until(lambda: typed.data == b"abcdefgh")
        keyboard.close()

    run(check())
    os.close(reader)
    os.close(writer)


def test_what_is_typed_at_our_pseudoterminal_is_read_and_nothing_of_it_is_for_us(terminal: tuple[int, int]) -> None:
    controller, fd = terminal
    tty.setraw(fd)
    before = termios.tcgetattr(fd)

    async def check() -> None:
        typed = Typed()
        keyboard = Keyboard(controller, typed.take, typed.escape)
        keyboard.start()
        os.write(fd, b"root\r\x1d\x1d\x1d")
        await until(lambda: typed.data == b"root\r\x1d\x1d\x1d")
        keyboard.close()
        assert typed.escapes == 0
        assert termios.tcgetattr(fd) == before

    run(check())


@pytest.mark.parametrize("path", ["/dev/null", __file__])
def test_what_cannot_be_waited_for_is_left_alone(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)

    async def check() -> None:
        typed = Typed()
        keyboard = Keyboard(fd, typed.take, typed.escape)
        keyboard.start()
        await asyncio.sleep(0.01)
        keyboard.close()
        assert typed.data == b""

    run(check())
    os.close(fd)


def test_a_terminal_of_another_job_is_left_alone(terminal: tuple[int, int]) -> None:
    controller, fd = terminal
    before = termios.tcgetattr(fd)

    async def check() -> None:
        typed = Typed()
        keyboard = Keyboard(fd, typed.take, typed.escape)
        keyboard.start()
        assert termios.tcgetattr(fd) == before
        os.write(controller, b"x\n")
        await asyncio.sleep(0.01)
        keyboard.close()
        assert typed.data == b""

    run(check())


# Runs as the leader of its own session, whose terminal is standard input; says what it saw on standard output.
JOB = """
import asyncio, os, sys, termios, time
from vmservice.service.keyboard import Keyboard

async def main():
    before = termios.tcgetattr(0)
    typed, escaped = bytearray(), asyncio.Event()
    keyboard = Keyboard(0, lambda data: typed.extend(data) or len(data), escaped.set)
    keyboard.start()
    raw = termios.tcgetattr(0)
    print("raw", not raw[3] & (termios.ECHO | termios.ICANON | termios.ISIG), bool(raw[1] & termios.OPOST), flush=True)
    await asyncio.wait_for(escaped.wait(), 10)
    keyboard.close()
    print("typed", bytes(typed), flush=True)
    print("restored", termios.tcgetattr(0) == before, flush=True)

asyncio.run(main())
"""


def test_the_terminal_is_raw_and_given_back_and_three_presses_lead_out() -> None:
    controller, terminal = os.openpty()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.login_tty(terminal) if hasattr(os, "login_tty") else _make_controlling(terminal)
        os.dup2(writer, 1)
        os.execve(sys.executable, [sys.executable, "-c", JOB], {**os.environ, "PYTHONPATH": str(CHECKOUT)})
    os.close(writer)
    os.close(terminal)
    with os.fdopen(reader, encoding="utf-8") as output:
        assert output.readline() == "raw True True\n"
        os.write(controller, b"a\x03b\x1dc\x1d\x1d")  # Ctrl-C is the guest's; two presses and another key are no escape
        os.write(controller, b"d")
        os.write(controller, b"\x1d\x1d\x1d")
        lines = output.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(controller)
    assert lines[0].startswith("typed b'a\\x03b\\x1dc\\x1d\\x1d")
    assert lines[1] == "restored True"


def _make_controlling(terminal: int) -> None:
    import fcntl

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.dup2(terminal, 0)


def test_who_comes_and_goes_at_a_socket_is_read_in_turn(tmp_path: Path) -> None:
    """Its descriptor is one that only tells that something is there."""

    class Log:
        def info(self, text: str) -> None: ...

        def warning(self, text: str) -> None: ...

    async def check() -> None:
        typed = Typed()
        console = open_socket_console(Log(), MoveNow(), "serial", directory=str(tmp_path), passed_fd=-1, is_stream=False)
        keyboard = Keyboard(
            console.input_fd, typed.take, typed.escape, console.read, took=console.took, visit=lambda: console.visit
        )
        keyboard.start()
        for visit in (b"one", b"two"):
            _, writer = await asyncio.open_unix_connection(str(tmp_path / "serial.sock"))
            writer.write(visit)
            await until(lambda visit=visit: typed.data.endswith(visit))  # type: ignore[misc]
            writer.close()
            await until(lambda: not console.is_attached)
        keyboard.close()
        console.close()
        assert (typed.data, typed.escapes) == (b"onetwo", 0)

    run(check())
