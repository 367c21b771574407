"""The loop's part: a connection is a message, closed at its end before anything is done; and floods stall nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.guest_socket import UnixListener, say

from vmservice.service import guest_link
from vmservice.service.guest_link import ACCEPTS_A_SEC, CONNECTIONS_MAX, GuestLink
from vmservice.service.guest_notify import GuestMessage

TIMEOUT_SEC = 60.0


class Bench:
    def __init__(self, folder: Path) -> None:
        self.listener = UnixListener(folder / "notify", backlog=4096)
        self.messages: asyncio.Queue[GuestMessage] = asyncio.Queue()
        self.link = GuestLink(self.listener, self.messages.put_nowait)
        self.clients: list[socket.socket] = []

    async def say(self, data: bytes) -> bytes:
        return await asyncio.to_thread(say, self.listener.path, data)

    async def next(self) -> GuestMessage:
        async with asyncio.timeout(TIMEOUT_SEC):
            return await self.messages.get()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.connect(str(self.listener.path))
        client.setblocking(False)
        return client


@contextlib.asynccontextmanager
async def link(folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    bench.link.start()
    try:
        yield bench
    finally:
        bench.link.close()
        for client in bench.clients:
            client.close()


async def ended(client: socket.socket) -> None:
    """The other side has closed it."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT_SEC):
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(client, 1) == b""


def test_a_message_is_taken_and_its_connection_closed(tmp_path: Path) -> None:
    async def check() -> None:
        async with link(tmp_path) as bench:
            for number in range(3):
                assert await bench.say(b"READY=1\nSTATUS=%d" % number) == b""
                message = await bench.next()
                assert (message.is_ready, message.status) == (True, str(number))

    asyncio.run(check())


def test_it_is_closed_before_anything_is_done_with_it(tmp_path: Path) -> None:
    async def check() -> None:
        seen: list[bytes] = []
        async with link(tmp_path) as bench:
            client = bench.connect()

            def look(_message: GuestMessage) -> None:
                seen.append(client.recv(1))

            bench.link._on_message = look
            client.send(b"READY=1")
            client.shutdown(socket.SHUT_WR)
            await ended(client)
            assert seen == [b""] or not seen
        assert seen == [b""]

    asyncio.run(check())


def test_a_message_in_pieces_is_one(tmp_path: Path) -> None:
    async def check() -> None:
        async with link(tmp_path) as bench:
            client = bench.connect()
            for piece in (b"REA", b"DY=1\nSTA", b"TUS=x"):
                client.send(piece)
                await asyncio.sleep(0)
            client.shutdown(socket.SHUT_WR)
            message = await bench.next()
            assert (message.is_ready, message.status) == (True, "x")

    asyncio.run(check())


def test_a_message_that_is_too_long_or_never_ends_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_link, "MESSAGE_SEC", 0.05)

    async def check() -> None:
        async with link(tmp_path) as bench:
            long, slow = bench.connect(), bench.connect()
            long.send(b"READY=1\n" + b"x" * 4096)
            slow.send(b"READY=1\n")
            await ended(long)
            await ended(slow)
            assert bench.messages.empty()
            monkeypatch.setattr(guest_link, "MESSAGE_SEC", TIMEOUT_SEC)
            assert await bench.say(b"READY=1") == b""
            assert (await bench.next()).is_ready

    asyncio.run(check())


def test_who_waits_holds_a_few_places_and_not_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_link, "MESSAGE_SEC", TIMEOUT_SEC)

    async def check() -> None:
        async with link(tmp_path) as bench:
            for _ in range(1000):
                bench.connect()
            saying = asyncio.ensure_future(bench.say(b"READY=1"))
            while bench.listener.accepted < CONNECTIONS_MAX:
                await asyncio.sleep(0)
            for _ in range(50):  # the loop does other things meanwhile, and nobody more is taken
                await asyncio.sleep(0)
            assert bench.listener.accepted == CONNECTIONS_MAX
            while bench.clients:
                bench.clients.pop().close()
            assert await saying == b""
            assert (await bench.next()).is_ready

    asyncio.run(check())


def test_strangers_are_hung_up_on_so_many_a_second(tmp_path: Path) -> None:
    async def check() -> None:
        async with link(tmp_path) as bench:
            bench.listener.strangers = True
            for _ in range(1000):
                bench.connect()
            await ended(bench.clients[0])
            loop = asyncio.get_running_loop()
            begin = loop.time()
            while bench.listener.accepted < ACCEPTS_A_SEC:
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            assert bench.listener.accepted == ACCEPTS_A_SEC or loop.time() - begin > 0.5
            await ended(bench.clients[ACCEPTS_A_SEC])  # when the second is over it goes on
            assert bench.messages.empty()

    asyncio.run(check())


def test_without_descriptors_it_rests_and_does_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        async with link(tmp_path) as bench:
            asked = 0
            accept = bench.listener.accept

            def refuse() -> object:
                nonlocal asked
                asked += 1
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(bench.listener, "accept", refuse)
            saying = asyncio.ensure_future(bench.say(b"READY=1"))
            async with asyncio.timeout(TIMEOUT_SEC):
                while not asked:
                    await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            assert asked == 1
            monkeypatch.setattr(bench.listener, "accept", accept)
            assert await saying == b""
            assert (await bench.next()).is_ready

    asyncio.run(check())


def test_what_a_guest_that_is_gone_was_saying_does_not_count(tmp_path: Path) -> None:
    async def check() -> None:
        async with link(tmp_path) as bench:
            client = bench.connect()
            client.send(b"READY=1")
            async with asyncio.timeout(TIMEOUT_SEC):
                while not bench.listener.accepted:
                    await asyncio.sleep(0)
            bench.link.hang_up()
            await ended(client)
            assert bench.messages.empty()

    asyncio.run(check())
