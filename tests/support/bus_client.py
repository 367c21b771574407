"""A caller on the bus, and a VM with a simulated machine for it to call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from dbus_next import Message, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import MessageFlag, MessageType
from support.clock import Clock

from vmservice.control.bus import BusConnection
from vmservice.control.dbus_transport import Transport
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name
from vmservice.vm.events import EventQueue
from vmservice.vm.sim import SimMachine
from vmservice.vm.vm import Vm

if TYPE_CHECKING:
    from vmservice.plug.backend import DeviceDetails
    from vmservice.vm.machine_protocol import Machine

TIMEOUT_SEC = 60.0
PROPERTIES = "org.freedesktop.DBus.Properties"


class CallFailed(Exception):
    """The reply was an error."""

    def __init__(self, reply: Message) -> None:
        self.name = str(reply.error_name)
        self.text = str(reply.body[0]) if reply.body else ""
        super().__init__(f"{self.name}: {self.text}")


class Client:
    """A connection of dbus-next's own, with descriptors negotiated; `signals` are those of VMs, as they arrived."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.signals: list[Message] = []
        self.traffic: list[str] = []
        bus.add_message_handler(self._on_message)

    def _on_message(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.path == OBJECT_PATH:
            self.signals.append(message)
            self.traffic.append(f"signal {message.member}")
        elif message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            self.traffic.append("reply")

    async def call(self, name: str, member: str, signature: str = "", body: list[Any] | None = None, **header: Any) -> Any:
        """Call a method of the VM called `name`; what it returns, or None. Raises CallFailed."""
        fields = {"destination": bus_name(name), "path": OBJECT_PATH, "interface": INTERFACE, **header}
        message = Message(member=member, signature=signature, body=body or [], **fields)
        async with asyncio.timeout(TIMEOUT_SEC):
            reply = await self.bus.call(message)
        if reply.message_type is MessageType.ERROR:
            raise CallFailed(reply)
        return reply.body[0] if reply.body else None

    async def get(self, name: str, property_name: str) -> Any:
        value: Variant = await self.call(name, "Get", "ss", [INTERFACE, property_name], interface=PROPERTIES)
        return value.value

    async def has_owner(self, name: str) -> bool:
        return bool(await self.call(name, "NameHasOwner", "s", [bus_name(name)], **_DAEMON))

    async def watch(self) -> None:
        """Receive the signals of VMs from now on."""
        await self.call("", "AddMatch", "s", [f"type='signal',path='{OBJECT_PATH}'"], **_DAEMON)


_DAEMON = {
    "destination": "org.freedesktop.DBus",
    "path": "/org/freedesktop/DBus",
    "interface": "org.freedesktop.DBus",
}


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Client]:
    bus = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
    try:
        yield Client(bus)
    finally:
        bus.disconnect()
        async with asyncio.timeout(TIMEOUT_SEC):
            await asyncio.wait({bus._disconnect_future})
        bus._disconnect_future.exception()
        try:
            bus._stream.close()
        finally:
            bus._sock.close()


class Served:
    """A VM on a simulated machine, and what its service would do with it."""

    def __init__(self, name: str, *, max_vcpus: int, build: Callable[[Served], Machine] | None) -> None:
        self.events = EventQueue()
        self.console: list[bytes] = []
        self.log: list[str] = []
        self.acquired = 0
        self.lost: list[str] = []
        self.news = asyncio.Event()
        self.joined: BusConnection | None = None
        make = build or (
            # Its heartbeats are counted in Stats: there is none while a test lasts.
            lambda served: SimMachine(served.events, served.console.append, vcpus=1, max_vcpus=max_vcpus, heartbeat_sec=3600.0)
        )
        self.clock = Clock()
        self.devices: list[DeviceDetails] = [("console", "serial", {"mode": "null"})]
        self.vm = Vm(
            name=name,
            vcpus=1,
            max_vcpus=max_vcpus,
            memory_bytes=64 << 20,
            build=lambda _vcpus: make(self),
            call_later=self.clock.call_later,
            devices=lambda: list(self.devices),
        )

    def connection(self, address: str, **options: Any) -> BusConnection:
        return BusConnection(
            self.vm, address, on_acquired=self._on_acquired, on_lost=self._on_lost, log=self._on_log, **options
        )

    def _on_acquired(self) -> None:
        self.acquired += 1
        self.news.set()

    def _on_log(self, text: str) -> None:
        self.log.append(text)
        self.news.set()

    def _on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when `condition` holds; it is looked at after each of the connection's callbacks."""
        async with asyncio.timeout(TIMEOUT_SEC):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def handle_events(self) -> None:
        for event in self.events.drain():
            self.vm.on_guest_event(event)


@asynccontextmanager
async def served_vm(
    address: str, name: str = "demo", *, max_vcpus: int = 4, build: Callable[[Served], Machine] | None = None
) -> AsyncIterator[Served]:
    """A VM that owns its name on the bus at `address`, with its guest's events acted upon."""
    served = Served(name, max_vcpus=max_vcpus, build=build)
    loop = asyncio.get_running_loop()
    loop.add_reader(served.events.fd, served.handle_events)
    connection = served.joined = served.connection(address)
    run = asyncio.ensure_future(connection.run())
    try:
        await served.until(lambda: served.acquired > 0)
        yield served
    finally:
        loop.remove_reader(served.events.fd)
        await connection.close()
        await run
        served.vm.close()
        served.events.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def flooders(address: str, number: int, calls: int) -> list[Transport]:
    """So many connections, each of which has called Pause so often and wants no replies. The caller closes them."""
    connections = [Transport(address) for _ in range(number)]
    for connection in connections:
        await connection.connect()
        for _ in range(calls):
            connection.send(
                Message(
                    destination=bus_name("demo"),
                    path=OBJECT_PATH,
                    interface=INTERFACE,
                    member="Pause",
                    flags=MessageFlag.NO_REPLY_EXPECTED,
                )
            )
    return connections
