"""Who is asked for a password, and by whom: an agent at the terminal, which never outlives the command.

The VM, and with it polkit, is a stand-in, and so is pkttyagent; tests/system/test_delegates.py has the real ones.
"""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from dbus_next import Message
from dbus_next.constants import MessageFlag
from support.mock_service import MockService, mock_service
from support.private_bus import PrivateBus
from support.process import CHECKOUT

from vmservice.control.errors import ACCESS_DENIED, INTERACTION_REQUIRED
from vmservice.control.names import bus_name

TIMEOUT_SEC = 30.0

AGENT = """\
#!{python}
import os, sys
with open({log!r} + ".new", "w") as log:
    print(os.getpid(), os.getppid(), os.ttyname(0), os.ttyname(2), *sys.argv[1:], file=log)
os.rename({log!r} + ".new", {log!r})
os.close(int(sys.argv[4]))
sys.stdin.readline()
"""

# Somebody who is not root, in a session whose terminal is standard input, if that is one.
PERSON = """\
import os, sys
os.geteuid = lambda: 1000
if os.isatty(0):
    os.close(os.open(os.ttyname(0), os.O_RDWR))
from vmservice.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Person:
    """Runs commands at a terminal; `agent` is where pkttyagent notes how it was started."""

    def __init__(self, folder: Path, bus: PrivateBus) -> None:
        self.log = folder / "agent"
        program = folder / "pkttyagent"
        program.write_text(AGENT.format(python=sys.executable, log=str(self.log)))
        program.chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONWARNINGS": "ignore::DeprecationWarning",
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
        }
        self._ours, self.terminal = pty.openpty()

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.terminal)

    @asynccontextmanager
    async def runs(self, *words: str, terminal: bool = True) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PERSON, *words),
            stdin=self.terminal if terminal else DEVNULL,
            stderr=PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(TIMEOUT_SEC):
                yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    def agent(self) -> tuple[int, list[str]]:
        """Its process, and what else it noted."""
        pid, *noted = self.log.read_text().split()
        return int(pid), noted


@pytest.fixture
def person(tmp_path: Path, bus: PrivateBus) -> Iterator[Person]:
    person = Person(tmp_path, bus)
    yield person
    person.close()


def alive(pid: int) -> bool:
    """Not ended, though perhaps not yet waited for by whoever has to."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@asynccontextmanager
async def vm(bus: PrivateBus, *, answers: bool = True) -> AsyncIterator[MockService]:
    """It wants a password; with interaction allowed it is done, or polkit waits for the person."""

    def answer(call: Message) -> Message | None:
        if not call.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION:
            return Message.new_error(call, INTERACTION_REQUIRED, "pause needs a password")
        return Message.new_method_return(call) if answers else None

    async with mock_service(bus.address, bus_name("demo"), answer) as service:
        yield service


def test_the_agent_asks_at_the_terminal(bus: PrivateBus, person: Person) -> None:
    async def check() -> None:
        async with vm(bus, answers=False) as service, person.runs("pause", "demo") as process:
            call = await service.asked("Pause", 2)
            agent, noted = person.agent()
            assert alive(agent)
            assert noted[:5] == [str(process.pid), "/dev/tty", "/dev/tty", "--process", str(process.pid)]
            assert (noted[5], noted[7:]) == ("--notify-fd", ["--fallback"])
            await service.bus.send(Message.new_method_return(call))
            assert (await process.communicate())[1] == b""
            assert process.returncode == 0
            assert not alive(agent)

    asyncio.run(check())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_agent_never_outlives_the_command(bus: PrivateBus, person: Person, number: signal.Signals) -> None:
    async def check() -> None:
        async with vm(bus, answers=False) as service, person.runs("pause", "demo") as process:
            await service.asked("Pause", 2)
            agent, _ = person.agent()
            assert alive(agent)
            process.send_signal(number)
            _, errors = await process.communicate()
            assert b"Traceback" not in errors
            assert process.returncode == (130 if number == signal.SIGINT else -number)
            while alive(agent):
                await asyncio.sleep(0.01)

    asyncio.run(check())


def test_without_a_terminal_a_desktop_may_still_ask(bus: PrivateBus, person: Person) -> None:
    async def check() -> None:
        async with vm(bus) as service, person.runs("pause", "demo", terminal=False) as process:
            assert (await process.communicate())[1] == b""
            assert process.returncode == 0
            assert len(service.calls) == 2
            assert not person.log.exists()

    asyncio.run(check())


def test_nobody_is_asked_where_no_password_is_wanted(bus: PrivateBus, person: Person) -> None:
    def deny(call: Message) -> Message:
        return Message.new_error(call, ACCESS_DENIED, "no")

    async def check() -> None:
        async with vm(bus) as service, person.runs("--no-ask-password", "pause", "demo") as process:
            assert (await process.communicate())[1] == b"vmservice: pause needs a password\n"
            assert process.returncode == 77
            assert len(service.calls) == 1
        async with mock_service(bus.address, bus_name("demo"), deny) as service, person.runs("pause", "demo") as process:
            assert (await process.communicate())[1] == b"vmservice: no\n"
            assert process.returncode == 77
            assert len(service.calls) == 1
        assert not person.log.exists()

    asyncio.run(check())
