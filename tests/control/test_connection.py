"""The VM's place on the bus: taken by another, lost, absent, frozen, and taken again. The VM runs on through all of it."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dbus_next import Message
from dbus_next.constants import MessageType, NameFlag, RequestNameReply
from support.bus_client import CallFailed, Served, client, open_fds, served_vm
from support.private_bus import PrivateBus

from vmservice.control import bus as bus_module
from vmservice.control.bus import BusNameTaken, bus_address
from vmservice.control.dbus_transport import Transport
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name
from vmservice.errors import HostFacilityMissing, UsageError


@contextmanager
def unserved(name: str = "demo") -> Iterator[Served]:
    served = Served(name, max_vcpus=4, build=None)
    try:
        yield served
    finally:
        served.vm.close()
        served.events.close()


def test_the_name_is_owned_already(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            with unserved() as second:
                before = open_fds()
                with pytest.raises(BusNameTaken) as raised:
                    await second.connection(bus.address).run()
                text = str(raised.value)
                assert text.startswith("the bus name org.vmservice.VM1.demo is already owned")
                assert text.endswith(f" by process {os.getpid()}: is this VM running already?")
                assert raised.value.exit_status == 69
                assert open_fds() == before
                assert (second.acquired, second.lost, second.log) == (0, [], [])
            assert await caller.get("demo", "State") == "created"

    asyncio.run(check())


def test_the_bus_is_killed_and_started_again(own_bus: PrivateBus) -> None:
    async def check() -> None:
        own_bus.start()
        async with served_vm(own_bus.address) as served:
            served.vm.boot()
            served.vm.pause()
            for outage in (1, 2):
                fds = open_fds()
                own_bus.kill()
                await served.until(lambda count=outage: len(served.lost) == count)  # type: ignore[misc]
                assert "the connection to the bus at unix:path=" in served.lost[-1]
                served.vm.resume() if outage == 1 else served.vm.pause()
                own_bus.start()
                await served.until(lambda count=outage: served.acquired == count + 1)  # type: ignore[misc]
                async with client(own_bus.address) as caller:
                    assert await caller.get("demo", "State") == ("running" if outage == 1 else "paused")
                assert len(open_fds()) == len(fds)
            assert served.log == []  # one word an outage, which is on_lost's

    asyncio.run(check())


def test_the_bus_comes_later(own_bus: PrivateBus) -> None:
    async def check() -> None:
        with unserved() as served:
            connection = served.connection(own_bus.address)
            run = asyncio.ensure_future(connection.run())
            await served.until(lambda: len(served.lost) == 1)
            assert "nothing answers at" in served.lost[0]
            assert "No such file or directory" in served.lost[0]
            own_bus.start()
            await served.until(lambda: served.acquired == 1)
            assert connection.owned
            await connection.close()
            await run
            assert (len(served.lost), served.log) == (1, [])

    asyncio.run(check())


class Thief(threading.Thread):
    """Owns a VM's name from a thread of its own, so that it can take it while the test's event loop stands still."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(name="thief")
        self._address = address
        self._name = name
        self._owned = threading.Event()
        self._leave = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    def take(self) -> None:
        self.start()
        assert self._owned.wait(10)

    def give_back(self) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self.join(10)

    def run(self) -> None:
        asyncio.run(self._hold())

    async def _hold(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with client(self._address) as caller:
            reply = await caller.bus.request_name(bus_name(self._name), NameFlag.DO_NOT_QUEUE)
            assert reply is RequestNameReply.PRIMARY_OWNER
            self._owned.set()
            await self._leave.wait()


def test_another_takes_the_name_while_the_bus_is_away(own_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start that is fatal; now the VM runs, so it is said once and tried again."""
    attempts: list[str] = []

    class Counted(Transport):
        def __init__(self, address: str) -> None:
            attempts.append(address)
            super().__init__(address)

    monkeypatch.setattr(bus_module, "Transport", Counted)
    monkeypatch.setattr(bus_module, "LAST_RETRY_SEC", 0.02)

    async def check() -> None:
        own_bus.start()
        async with served_vm(own_bus.address) as served:
            own_bus.kill()
            await served.until(lambda: len(served.lost) == 1)
            own_bus.start()
            thief = Thief(own_bus.address, "demo")
            thief.take()
            await served.until(lambda: len(served.log) == 1)
            assert f"is already owned by process {os.getpid()}" in served.log[0]
            assert served.log[0].endswith("; it will be tried again")
            tried = len(attempts)
            async with asyncio.timeout(60):
                while len(attempts) < tried + 3:
                    await asyncio.sleep(0)
            thief.give_back()
            await served.until(lambda: served.acquired == 2)
            assert len(served.log) == len(served.lost) == 1

    asyncio.run(check())


def test_a_frozen_bus_at_the_start(own_bus: PrivateBus) -> None:
    async def check() -> None:
        own_bus.start()
        own_bus.freeze()
        with unserved() as served:
            connection = served.connection(own_bus.address, connect_timeout_sec=0.1)
            run = asyncio.ensure_future(connection.run())
            await served.until(lambda: len(served.lost) == 1)
            assert served.lost[0].endswith("did not answer within 0.1 seconds")
            served.vm.boot()
            connection._connect_timeout_sec = 60.0
            own_bus.thaw()
            await served.until(lambda: served.acquired == 1)
            await connection.close()
            await run

    asyncio.run(check())


def test_a_bus_that_freezes_later_holds_nobody(own_bus: PrivateBus) -> None:
    async def check() -> None:
        own_bus.start()
        with unserved() as served:
            connection = served.connection(own_bus.address)
            run = asyncio.ensure_future(connection.run())
            await served.until(lambda: served.acquired == 1)
            own_bus.freeze()
            served.vm.boot()
            for _ in range(20_000):  # far more signals than any socket holds
                served.vm.pause()
                served.vm.resume()
                if len(served.lost) == 1:
                    break
                await asyncio.sleep(0)
            assert len(served.lost) == 1, "the VM gives up on a bus that takes nothing"
            await connection.close()
            await run
            own_bus.thaw()

    asyncio.run(check())


def test_a_bus_that_freezes_for_a_while_misses_nothing(own_bus: PrivateBus) -> None:
    """dbus-next 0.2.3 drops the connection as soon as the socket is full."""

    async def check() -> None:
        own_bus.start()
        async with served_vm(own_bus.address) as served, client(own_bus.address) as caller:
            await caller.watch()
            served.vm.boot()
            own_bus.freeze()
            for _ in range(400):  # more than the socket holds, less than what the VM keeps for the bus
                served.vm.pause()
                served.vm.resume()
                await asyncio.sleep(0)
            own_bus.thaw()
            assert await caller.get("demo", "State") == "running"
            assert len(caller.signals) == 801
            assert (served.acquired, served.lost) == (1, [])

    asyncio.run(check())


def test_what_waits_goes_out_before_the_end(own_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus takes nothing for a moment, just when the VM leaves: its last words arrive all the same."""
    monkeypatch.setattr(bus_module, "FAREWELL_TIMEOUT_SEC", 60.0)

    async def check() -> None:
        own_bus.start()
        with unserved() as served:
            connection = served.connection(own_bus.address)
            run = asyncio.ensure_future(connection.run())
            await served.until(lambda: served.acquired == 1)
            async with client(own_bus.address) as caller:
                await caller.watch()
                served.vm.boot()
                own_bus.freeze()
                for _ in range(400):
                    served.vm.pause()
                    served.vm.resume()
                    await asyncio.sleep(0)
                closing = asyncio.ensure_future(connection.close())
                await asyncio.sleep(0)
                own_bus.thaw()
                await closing
                await run
                assert not await caller.has_owner("demo")
                assert len(caller.signals) == 801

    asyncio.run(check())


def test_closing_on_a_frozen_bus(own_bus: PrivateBus) -> None:
    async def check() -> None:
        own_bus.start()
        with unserved() as served:
            connection = served.connection(own_bus.address)
            run = asyncio.ensure_future(connection.run())
            await served.until(lambda: served.acquired == 1)
            own_bus.freeze()
            async with asyncio.timeout(60):
                await connection.close()
                await run
            own_bus.thaw()

    asyncio.run(check())


def test_closing_in_the_middle_of_connecting(own_bus: PrivateBus) -> None:
    async def check() -> None:
        own_bus.start()
        own_bus.freeze()
        with unserved() as served:
            connection = served.connection(own_bus.address)
            run = asyncio.ensure_future(connection.run())
            await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await connection.close()
                await run
            assert (served.acquired, served.lost) == (0, [])
            own_bus.thaw()

    asyncio.run(check())


def test_close_before_run(bus: PrivateBus) -> None:
    async def check() -> None:
        with unserved() as served:
            connection = served.connection(bus.address)
            await connection.close()
            await connection.close()
            await connection.run()
            assert (served.acquired, served.lost) == (0, [])

    asyncio.run(check())


def test_a_cancelled_run_leaves_the_bus(bus: PrivateBus) -> None:
    async def check() -> None:
        async with client(bus.address) as caller:
            with unserved("cancelled") as served:
                run = asyncio.ensure_future(served.connection(bus.address).run())
                await served.until(lambda: served.acquired == 1)
                run.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await run
                async with asyncio.timeout(60):
                    while await caller.has_owner("cancelled"):
                        pass

    asyncio.run(check())


def test_the_reply_goes_out_before_the_end(bus: PrivateBus) -> None:
    """Shutdown's caller hears of its success although the process leaves the bus as soon as the VM is down."""

    async def check() -> None:
        for _ in range(20):
            with unserved() as served:
                connection = served.connection(bus.address)
                run = asyncio.ensure_future(connection.run())
                await served.until(lambda: served.acquired == 1)
                served.vm.boot()
                down = asyncio.Event()
                served.vm.subscribe(lambda changes, down=down: down.set())  # type: ignore[misc]
                async with client(bus.address) as caller:
                    shutdown = asyncio.ensure_future(caller.call("demo", "Shutdown"))
                    await down.wait()
                    await connection.close()
                    await shutdown
                    await run
                    assert not await caller.has_owner("demo")

    asyncio.run(check())


def test_a_peer_that_hangs_up_during_authentication() -> None:
    """dbus-next 0.2.3 reads the end of the connection again and again without a pause, for ever."""

    async def check() -> None:
        with tempfile.TemporaryDirectory(prefix="vmservice-") as folder:
            path = os.path.join(folder, "bus")

            async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                assert (await reader.readline()).startswith(b"\0AUTH EXTERNAL ")
                writer.close()

            async with await asyncio.start_unix_server(hang_up, path) as server:
                with unserved() as served:
                    connection = served.connection(f"unix:path={path}")
                    run = asyncio.ensure_future(connection.run())
                    await served.until(lambda: len(served.lost) == 1)
                    assert served.lost == ["the bus broke off the authentication"]
                    await connection.close()
                    await run
                server.close()

    asyncio.run(check())


def test_a_full_backlog_does_not_block() -> None:
    """connect(2) to a stopped daemon whose backlog is full waits for ever, unless the socket is non-blocking."""

    async def check() -> None:
        with tempfile.TemporaryDirectory(prefix="vmservice-") as folder, unserved() as served:
            path = os.path.join(folder, "bus")
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
                listener.bind(path)
                listener.listen(0)
                first.connect(path)
                connection = served.connection(f"unix:path={path}")
                run = asyncio.ensure_future(connection.run())
                await served.until(lambda: len(served.lost) == 1)
                assert "Resource temporarily unavailable" in served.lost[0]
                await connection.close()
                await run

    asyncio.run(check())


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert bus_address("system") == "unix:path=/run/dbus/system_bus_socket"
    with pytest.raises(HostFacilityMissing, match="there is no session bus"):
        bus_address("session")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert bus_address("session") == "unix:runtime=yes"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/7/bus")
    assert bus_address("session") == "unix:path=/run/user/7/bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:abstract=x")
    assert bus_address("system") == "unix:abstract=x"
    for malformed in ("", "nonsense", "unix:", "unix:path", "unix:nothing=1", "tcp:host=localhost,port=1", "unix:path=a b"):
        with pytest.raises(UsageError, match="bus address"):
            bus_address(malformed)


def test_runtime_address(own_bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    own_bus.start()
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.path.dirname(own_bus.address.removeprefix("unix:path=")))

    async def check() -> None:
        async with served_vm("unix:runtime=yes"), client(own_bus.address) as caller:
            assert await caller.get("demo", "State") == "created"

    asyncio.run(check())


def test_fds_in_messages_are_refused_and_not_kept(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            before = open_fds()
            with open("/dev/null", "rb") as file:
                for _ in range(50):
                    call = Message(
                        destination=bus_name("demo"),
                        path=OBJECT_PATH,
                        interface=INTERFACE,
                        member="Boot",
                        signature="h",
                        body=[0],
                        unix_fds=[file.fileno()],
                    )
                    reply = await caller.bus.call(call)
                    assert (reply.message_type, reply.sender) == (MessageType.ERROR, "org.freedesktop.DBus")
            assert open_fds() == before
            assert await caller.get("demo", "State") == "created"

    asyncio.run(check())


def test_a_name_of_each_vm(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address, "web-1"), served_vm(bus.address, "9.a_b"), client(bus.address) as caller:
            assert await caller.get("web-1", "Name") == "web-1"
            assert await caller.get("9.a_b", "Name") == "9.a_b"
            with pytest.raises(CallFailed, match="ServiceUnknown"):
                await caller.get("web", "Name")

    asyncio.run(check())
