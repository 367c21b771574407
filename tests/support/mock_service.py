"""A system service that a test plays on a private bus: polkit, logind. It answers what it is told to, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dbus_next import Message
from dbus_next.aio import MessageBus
from dbus_next.constants import MessageType, NameFlag
from support.bus_client import TIMEOUT_SEC, Client, client

# The reply to a call, or None: then there is none, for as long as the service is there.
Answer = Callable[[Message], Message | None]


class MockService:
    """Owns `name`; `calls` are those that came in, as they came."""

    def __init__(self, caller: Client, name: str, answer: Answer) -> None:
        self.bus: MessageBus = caller.bus
        self.calls: list[Message] = []
        self.answer = answer
        self._name = name
        self._news = asyncio.Event()
        self.bus.add_message_handler(self._on_message)

    async def appear(self) -> None:
        await self.bus.request_name(self._name, NameFlag.DO_NOT_QUEUE)

    async def vanish(self) -> None:
        """The name has no owner any more; the connection stays."""
        await self.bus.release_name(self._name)

    async def asked(self, member: str, count: int = 1) -> Message:
        """The latest call of `member`, when there were `count` of them."""
        async with asyncio.timeout(TIMEOUT_SEC):
            while len(found := [call for call in self.calls if call.member == member]) < count:
                self._news.clear()
                await self._news.wait()
        return found[-1]

    def _on_message(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        self.calls.append(message)
        self._news.set()
        return self.answer(message) or True


@asynccontextmanager
async def mock_service(address: str, name: str, answer: Answer) -> AsyncIterator[MockService]:
    async with client(address) as caller:
        service = MockService(caller, name, answer)
        await service.appear()
        yield service
