"""Clients of a console at a socket come and go, with the real mover and the real keyboard.

| how | what becomes of bytes |
|---|---|
| a client types, the guest takes nothing, the client goes | the next one's are the first that the guest reads |
| the same, of which some waits for the guest in the machine | it is forgotten as soon as the next one comes |
| the same, and the guest wakes up before the next comes | the guest reads them: they are of the last who was there |
| a client goes without reading | a console's next client sees what was printed since; a stream's does not |
| nobody is there | a console keeps the last 64 KiB; a stream has no room, and the guest waits |
| a client comes while one is there | it is turned away |
| a client comes when one has gone that nobody noticed | it is let in |
| a client goes while its bytes are on their way to the guest | the next one is let in behind them (test_socket.py) |
| a client comes as soon as one has gone | the guest sees a stream's end, then a new one (test_plugs.py) |
| a client at a pseudoterminal goes, another comes | as at a serial line: what was typed is the line's, not the client's |
| a client shuts down its sending side | it still reads |
| no descriptor is left | whoever waits is let in when there is one again; one warning |
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from support.console_log import Log
from support.movers import running_mover

from vmservice.host.consoles.socket import BUSY, SocketConsole, open_socket_console
from vmservice.service.keyboard import Keyboard

TIMEOUT_SEC = 60.0


class Guest:
    """Takes up to `room` bytes of what is typed, and has up to 10 more kept for it, as the machine does at a console."""

    def __init__(self, keeps: int = 10) -> None:
        self.room = 0
        self.read = b""
        self.kept = b""
        self.keeps = keeps

    def take(self, data: bytes) -> int:
        self.feed()
        taken = data[: self.room] if not self.kept else b""
        self.read += taken
        self.room -= len(taken)
        kept = data[len(taken) : len(taken) + self.keeps - len(self.kept)]
        self.kept += kept
        return len(taken) + len(kept)

    def feed(self) -> None:
        taken = self.kept[: self.room]
        self.kept = self.kept[len(taken) :]
        self.read += taken
        self.room -= len(taken)

    def forget(self) -> None:
        self.kept = b""


class Place:
    """A console, its keyboard, and who comes."""

    def __init__(self, console: SocketConsole, keyboard: Keyboard, guest: Guest, log: Log, path: str) -> None:
        self.console = console
        self.keyboard = keyboard
        self.guest = guest
        self.log = log
        self._path = path

    async def come(self, *, admitted: bool = True) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect(self._path)
        if admitted:
            await until(lambda: self.console.is_attached)
        return client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SEC):
        while not condition():
            await asyncio.sleep(0.002)


async def receive(client: socket.socket) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 20), TIMEOUT_SEC)


@asynccontextmanager
async def place(folder: Path, *, is_stream: bool = False) -> AsyncIterator[Place]:
    with running_mover() as mover:
        log, guest = Log(), Guest(keeps=0 if is_stream else 10)
        console = open_socket_console(log, mover, "serial", directory=str(folder), passed_fd=-1, is_stream=is_stream)
        keyboard = Keyboard(
            console.input_fd,
            guest.take,
            lambda: None,
            console.read,
            took=console.took,
            visit=lambda: console.visit,
            forget=guest.forget,
        )
        loop = asyncio.get_running_loop()

        def on_visit() -> None:
            loop.call_soon_threadsafe(keyboard.look_at_visit)

        console.on_visit = on_visit
        keyboard.start()
        yield Place(console, keyboard, guest, log, str(folder / "serial.sock"))
        console.on_visit = None
        keyboard.close()
        console.close()


def run(check: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(check(), 3 * TIMEOUT_SEC)

    asyncio.run(bounded())


def test_the_next_client_types_nothing_of_the_last_ones(tmp_path: Path) -> None:
    for is_stream in (False, True):

        async def check(is_stream: bool = is_stream) -> None:
            async with place(tmp_path, is_stream=is_stream) as here:
                first = await here.come()
                first.send(b"rm -rf /important" * 100)
                await asyncio.sleep(0.05)
                first.close()
                await until(lambda: not here.console.is_attached)
                visit = here.console.visit
                second = await here.come()
                await until(lambda: here.console.visit == visit + 1)
                second.send(b"ls\n")
                await asyncio.sleep(0.05)
                here.guest.room = 1000
                here.guest.feed()
                here.keyboard.retry()
                await until(lambda: here.guest.read.endswith(b"ls\n"))
                assert here.guest.read == b"ls\n"
                second.close()

        run(check)


def test_what_waits_for_the_guest_is_forgotten_when_the_next_client_comes(tmp_path: Path) -> None:
    """And not when that one types, for the guest may take it before."""

    async def check() -> None:
        async with place(tmp_path) as here:
            first = await here.come()
            first.send(b"rm -rf /important")
            await until(lambda: here.guest.kept == b"rm -rf /im")
            first.close()
            await until(lambda: not here.console.is_attached)
            second = await here.come()
            await until(lambda: here.guest.kept == b"")
            here.guest.room = 1000
            second.send(b"ls\n")
            await until(lambda: here.guest.read == b"ls\n")
            second.close()

    run(check)


def test_what_was_typed_before_leaving_is_read_by_a_guest_that_wakes_up_before_the_next_comes(tmp_path: Path) -> None:
    async def check() -> None:
        async with place(tmp_path) as here:
            client = await here.come()
            client.send(b"x" * 1000)
            await asyncio.sleep(0.05)
            client.close()
            await until(lambda: not here.console.is_attached)
            here.guest.room = 10_000
            here.keyboard.retry()
            await until(lambda: here.guest.read == b"x" * 1000)

    run(check)


def test_what_a_client_has_not_read_is_the_next_ones_at_a_console_only(tmp_path: Path) -> None:
    async def check_console() -> None:
        async with place(tmp_path) as here:
            (await here.come()).close()
            await until(lambda: not here.console.is_attached)
            here.console.write(b"printed for nobody\n")
            client = await here.come()
            assert await receive(client) == b"printed for nobody\n"
            client.close()

    async def check_stream() -> None:
        async with place(tmp_path, is_stream=True) as here:
            assert not here.console.has_room(), "the guest waits until somebody comes"
            told: list[bool] = []
            here.console.on_attached = lambda: told.append(here.console.is_attached)
            first = await here.come()
            while here.console.has_room():
                here.console.write(b"of the first conversation" * 100)
            first.close()
            await until(lambda: not here.console.is_attached)
            assert not here.console.has_room()
            second = await here.come()
            here.console.write(b"of the second")
            assert await receive(second) == b"of the second"
            assert told[0] and told[-1] and len(told) > 1
            second.close()

    run(check_console)
    run(check_stream)


def test_the_place_is_free_as_soon_as_its_client_has_gone(tmp_path: Path) -> None:
    """Also with a guest that reads nothing, whose keyboard would notice nothing; forty times, each at once."""

    async def check() -> None:
        async with place(tmp_path) as here:
            for _ in range(40):
                client = await here.come(admitted=False)
                client.send(b"never read" * 100)
                here.console.write(b"hello\n")
                assert BUSY not in await receive(client)
                client.close()

    run(check)


def test_a_second_client_is_turned_away_and_the_first_stays(tmp_path: Path) -> None:
    async def check() -> None:
        async with place(tmp_path) as here:
            here.guest.room = 100
            first = await here.come()
            second = await here.come(admitted=False)
            assert await receive(second) == BUSY
            second.close()
            first.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.05)
            here.console.write(b"still here")
            assert await receive(first) == b"still here"
            first.close()

    run(check)


def test_without_descriptors_whoever_comes_waits_and_it_is_said_once(tmp_path: Path) -> None:
    async def check() -> None:
        async with place(tmp_path) as here:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.setblocking(False)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
            try:
                client.connect(str(tmp_path / "serial.sock"))
                await until(lambda: bool(here.log.warnings))
                await asyncio.sleep(1.5)
                assert here.log.warnings == ["nobody can come to the serial console now: Too many open files"]
                assert not here.console.is_attached
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            here.console.write(b"welcome")
            assert await receive(client) == b"welcome"
            client.close()

    run(check)
