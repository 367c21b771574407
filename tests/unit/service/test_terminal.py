"""A person's terminal: the whole program in a job of its own, with a simulated guest, and every way out that there is."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.movers import MoveNow
from support.process import CHECKOUT, SIM_CONFIG

from vmservice.host.consoles.pty import PtyConsole

JOB = Path(__file__).parents[2] / "support/shell_job.py"
TIMEOUT_SEC = 60.0
ESCAPE = b"\x1d\x1d\x1d"

# As `vmservice run`, and the event loop meets a bug of ours as soon as the file "fault" is there.
RUN_WITH_A_FAULT = """
import os, sys
from vmservice.service.loop import Service
from vmservice.cli import main

tick = Service._become_ready
def faulty(self):
    tick(self)
    import asyncio
    def look():
        if os.path.exists("fault"):
            raise RuntimeError("a bug")
        asyncio.get_running_loop().call_later(0.01, look)
    look()
Service._become_ready = faulty
sys.exit(main(["run", *sys.argv[1:]]))
"""


class Job:
    """`vmservice run demo` in the foreground of a terminal, whose other end is `screen`."""

    def __init__(self, folder: Path, program: list[str], arguments: list[str] | None = None) -> None:
        config = folder / "demo.toml"
        config.write_text(SIM_CONFIG)
        self.screen, terminal = os.openpty()
        self.before = termios.tcgetattr(terminal)
        self.terminal = terminal
        self._report, report = os.pipe()
        order, self._order = os.pipe()
        self._reported = b""
        self.shown = b""
        if arguments is None:
            arguments = ["run"] if program == ["-m", "vmservice"] else []
            arguments += ["--sim", "--bus", "none", "--config", str(config), "demo"]
        self._shell = subprocess.Popen(
            [
                *("setsid", "--ctty", sys.executable, JOB, str(report), str(order)),
                *(sys.executable, *program, *arguments),
            ],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            pass_fds=(report, order),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        os.close(report)
        os.close(order)
        self.pid = int(self.wait_report().split()[1])
        self.wait_mode("raw")

    def mode(self) -> str:
        """raw, cooked (exactly as it was), or neither."""
        now = termios.tcgetattr(self.terminal)
        if now == self.before:
            return "cooked"
        return "raw" if not now[3] & (termios.ECHO | termios.ICANON | termios.ISIG) else "neither"

    def wait_mode(self, mode: str) -> None:
        self._wait(lambda: self.mode() == mode, f"the terminal is {self.mode()}, not {mode}")

    def wait_shown(self, text: bytes) -> None:
        self._wait(lambda: text in self.shown, f"{text!r} was not shown")

    def wait_report(self) -> str:
        """What the shell says next."""
        self._wait(lambda: b"\n" in self._reported, "the shell says nothing")
        line, _, self._reported = self._reported.partition(b"\n")
        return line.decode()

    def say(self, order: bytes) -> None:
        os.write(self._order, order)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + TIMEOUT_SEC
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{otherwise}; shown: {self.shown!r}")
            ready = select.select([self.screen, self._report], [], [], 0.02)[0]
            if self.screen in ready:
                self.shown += os.read(self.screen, 4096)
            if self._report in ready:
                self._reported += os.read(self._report, 4096)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._shell.kill()
        self._shell.wait()
        for fd in (self.screen, self.terminal, self._report, self._order):
            os.close(fd)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path, ["-m", "vmservice"])
    yield job
    job.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_stop(job: Job, number: signal.Signals) -> None:
    job.send(number)
    assert job.wait_report() == "ended 0 cooked"
    assert job.mode() == "cooked"
    assert b"power button pressed" in job.shown


def test_the_keys_that_lead_out(job: Job) -> None:
    os.write(job.screen, b"ls\x03\x1a")
    job.wait_shown(b"ls\x03\x1a")  # Ctrl-C and Ctrl-Z are the guest's, which echoes them
    os.write(job.screen, ESCAPE)
    assert job.wait_report() == "ended 0 cooked"
    assert job.mode() == "cooked"


def test_a_guest_that_powers_off(tmp_path: Path) -> None:
    """And with a second signal, which does not wait for it."""
    job = Job(tmp_path, ["-m", "vmservice"])
    job.send(signal.SIGTERM)
    job.wait_shown(b"power button pressed")
    job.send(signal.SIGTERM)
    assert job.wait_report() == "ended 0 cooked"
    job.close()


def test_a_bug_of_ours(tmp_path: Path) -> None:
    job = Job(tmp_path, ["-c", RUN_WITH_A_FAULT])
    (tmp_path / "fault").touch()
    assert job.wait_report() == "ended 70 cooked"
    assert job.mode() == "cooked"
    assert b"RuntimeError: a bug" in job.shown
    job.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_death_that_nobody_can_prepare_for(job: Job, number: signal.Signals) -> None:
    job.send(number)
    assert re.fullmatch(rf"ended -{number.value} \w+", job.wait_report())
    job.wait_mode("cooked")


def test_a_shell_that_says_twice_that_the_terminal_is_gone_forces_nothing(job: Job) -> None:
    job.send(signal.SIGSTOP)
    assert job.wait_report() == "stopped raw"
    job.send(signal.SIGHUP)
    job.say(b"f")
    job.wait_shown(b"power button pressed")
    job.send(signal.SIGHUP)
    assert job.wait_report() == "ended 0 cooked"
    assert b"forced" not in job.shown


def test_a_person_at_a_console_who_is_stopped_and_continued(tmp_path: Path) -> None:
    """From outside: every key is the guest's, and so no key can do it."""

    class Log:
        def info(self, text: str) -> None: ...

        def warning(self, text: str) -> None: ...

    console = PtyConsole(Log(), MoveNow(), "serial", str(tmp_path))
    attach = "import sys; from vmservice.client.console import attach; attach('demo', sys.argv[1])"
    job = Job(tmp_path, ["-c", attach], [str(tmp_path)])
    for number, mode in ((signal.SIGTSTP, "cooked"), (signal.SIGSTOP, "raw"), (signal.SIGTSTP, "cooked")):
        job.send(number)
        assert job.wait_report() == f"stopped {mode}"
        termios.tcsetattr(job.terminal, termios.TCSANOW, job.before)  # as a shell does
        job.say(b"f")
        job.wait_mode("raw")
        console.write(b"still here after %d" % number)
        job.wait_shown(b"still here after %d" % number)
    os.write(job.screen, ESCAPE)
    assert job.wait_report() == "ended 0 cooked"
    job.close()
    console.close()


def test_stopped_and_continued(job: Job) -> None:
    for _ in range(3):
        job.send(signal.SIGTSTP)
        assert job.wait_report() == "stopped cooked"
        assert job.mode() == "cooked"
        job.say(b"f")
        job.wait_mode("raw")
    seen = len(job.shown)
    os.write(job.screen, b"still at the keyboard")
    job.wait_shown(b"still at the keyboard")
    assert b"still" not in job.shown[:seen]
    job.send(signal.SIGTERM)
    assert job.wait_report() == "ended 0 cooked"


def test_continued_in_the_background_it_leaves_the_terminal_alone(job: Job) -> None:
    job.send(signal.SIGTSTP)
    assert job.wait_report() == "stopped cooked"
    job.say(b"b")
    beats = job.shown.count(b"heartbeat")
    job._wait(lambda: job.shown.count(b"heartbeat") > beats, "it does not run on")
    os.write(job.screen, b"for the shell\n")
    job._wait(lambda: job.shown.count(b"heartbeat") > beats + 1, "what was typed has stopped it")
    assert job.mode() == "cooked"
    job.send(signal.SIGTERM)
    assert job.wait_report() == "ended 0 cooked"


def test_a_stop_that_cannot_be_prepared_for(job: Job) -> None:
    """SIGSTOP: the shell puts its terminal right by itself; we take it again when we are in the foreground."""
    job.send(signal.SIGSTOP)
    assert job.wait_report() == "stopped raw"
    termios.tcsetattr(job.terminal, termios.TCSANOW, job.before)
    job.say(b"b")
    beats = job.shown.count(b"heartbeat")
    job._wait(lambda: job.shown.count(b"heartbeat") > beats, "it does not run on")
    assert job.mode() == "cooked"
    job.send(signal.SIGTERM)
    assert job.wait_report() == "ended 0 cooked"
