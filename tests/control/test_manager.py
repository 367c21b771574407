"""org.vmservice.Manager1 on a private bus: which VMs it shows, and that a client which asks once knows all from then on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
from dbus_next import Message, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import NameFlag
from support.bus_client import PROPERTIES, TIMEOUT_SEC, CallFailed, client, served_vm
from support.managed import Desktop, Managing, desktop, managing
from support.private_bus import PrivateBus

from vmservice.control.names import INTERFACE as VM1
from vmservice.control.names import OBJECT_PATH as VM1_PATH
from vmservice.control.names import bus_name
from vmservice.errors import HostError
from vmservice.manager import callers, model
from vmservice.manager.names import INTERFACE, OBJECT_MANAGER, OBJECT_PATH, VM_INTERFACE, VMS_PATH, vm_path

_ERROR = "org.freedesktop.DBus.Error."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where configuration files are."""
    folder = tmp_path / "etc/vmservice"
    folder.mkdir(parents=True)
    return folder


def configure(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.toml").touch()


def test_the_configured_vms(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "demo", "web-1", "1st", "not a name", ".hidden")
    (folder / "README").touch()
    (folder / "folder.toml").mkdir()

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            assert seen.names() == {"demo", "web-1", "1st"}
            assert set(seen.objects) == {f"{VMS_PATH}/demo", f"{VMS_PATH}/web_2d1", f"{VMS_PATH}/_31st"}
            assert seen.objects[vm_path("web-1")] == {
                "Name": "web-1",
                "BusName": "",
                "State": "",
                "Unit": "vm@web-1.service",
                "ActiveState": "",
                "SubState": "",
                "Reason": "",
                "HasConfiguration": True,
            }
            assert await seen.get_all("web-1") == seen.objects[vm_path("web-1")]
            listed = [["1st", vm_path("1st")], ["demo", vm_path("demo")], ["web-1", vm_path("web-1")]]
            assert await seen.call("ListVMs") == listed
            assert await seen.call("GetVM", "s", ["web-1"]) == vm_path("web-1")
            assert (await seen.call("Get", "ss", [INTERFACE, "Version"], interface=PROPERTIES)).value == "1.2.3"

    asyncio.run(check())


def test_files_come_and_go(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "demo")

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            configure(folder, "web")
            await seen.until(lambda: seen.names() == {"demo", "web"})
            assert seen.get("web", "HasConfiguration") is True
            (folder / "web.toml").rename(folder / "mail.toml")
            await seen.until(lambda: seen.names() == {"demo", "mail"})
            (folder / "mail.toml").unlink()
            await seen.until(lambda: seen.names() == {"demo"})
            (folder / "mail.toml.new").touch()
            (folder / "mail.toml.new").rename(folder / "mail.toml")
            await seen.until(lambda: seen.names() == {"demo", "mail"})

    asyncio.run(check())


def test_a_vm_of_drop_ins_alone(bus: PrivateBus, folder: Path) -> None:
    (folder / "common.d").mkdir()
    (folder / "common.d/all.toml").touch()

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            (folder / "demo.toml.d").mkdir()
            configure(folder, "web")
            await seen.until(lambda: seen.names() == {"web"})
            (folder / "demo.toml.d/10-disk.toml").touch()
            await seen.until(lambda: seen.names() == {"demo", "web"})
            (folder / "demo.toml.d/10-disk.toml").unlink()
            await seen.until(lambda: seen.names() == {"web"})

    asyncio.run(check())


def test_drop_ins_that_cannot_be_looked_into_hide_no_other_vm(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "web")
    (folder / "demo.toml.d").symlink_to("demo.toml.d")

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            assert seen.names() == {"demo", "web"}

    asyncio.run(check())


def test_the_folder_comes_and_goes(bus: PrivateBus, tmp_path: Path) -> None:
    folder = tmp_path / "home/.config/vmservice"

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            assert seen.objects == {}
            for _ in range(2):
                folder.mkdir(parents=True)
                configure(folder, "demo")
                await seen.until(lambda: seen.names() == {"demo"})
                shutil.rmtree(tmp_path / "home")
                await seen.until(lambda: seen.names() == set())
            (tmp_path / "other").mkdir()
            configure(tmp_path / "other", "web")
            folder.parent.mkdir(parents=True)
            (tmp_path / "other").rename(folder)
            await seen.until(lambda: seen.names() == {"web"})
            folder.rename(tmp_path / "other")
            await seen.until(lambda: seen.names() == set())

    asyncio.run(check())


def test_a_vm_runs(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "web-1")

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            async with served_vm(bus.address, "web-1") as served:
                await seen.until(lambda: seen.get("web-1", "State") == "created")
                assert seen.get("web-1", "BusName") == "org.vmservice.VM1.web_2d1"
                for verb, state in ((served.vm.boot, "running"), (served.vm.pause, "paused"), (served.vm.shutdown, "shutdown")):
                    verb()
                    await seen.until(lambda state=state: seen.get("web-1", "State") == state)  # type: ignore[misc]
                assert await seen.get_all("web-1") == seen.objects[vm_path("web-1")]
            await seen.until(lambda: seen.get("web-1", "BusName") == "")
            assert seen.get("web-1", "State") == ""
            assert {signal for signal, _ in seen.heard} == {"PropertiesChanged"}

    asyncio.run(check())


def test_a_vm_without_a_file_is_there_while_it_runs(bus: PrivateBus, folder: Path) -> None:
    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            async with served_vm(bus.address, "guest"):
                await seen.until(lambda: seen.get("guest", "State") == "created")
                assert seen.get("guest", "HasConfiguration") is False
                assert seen.heard[0] == ("InterfacesAdded", "guest")
            await seen.until(lambda: seen.heard[-1] == ("InterfacesRemoved", "guest"))
            with pytest.raises(CallFailed, match=r"NoSuchVM: there is no VM \"guest\"") as failed:
                await seen.call("GetVM", "s", ["guest"])
            assert failed.value.name == "org.vmservice.Manager1.Error.NoSuchVM"

    asyncio.run(check())


def test_vms_that_ran_before_are_seen_at_once(bus: PrivateBus, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer is complete: who has started the manager by a call waits until it knows."""
    for patience in ("running.LOOK_TIMEOUT_SEC", "manager.LOOK_PATIENCE_SEC", "manager.CONNECT_TIMEOUT_SEC"):
        monkeypatch.setattr(f"vmservice.manager.{patience}", 60.0)  # a slow machine is no VM that does not answer

    async def check() -> None:
        async with served_vm(bus.address, "one") as one, served_vm(bus.address, "two"):
            one.vm.boot()
            async with managing(bus.address, folder), desktop(bus.address) as seen:
                assert {name: seen.get(name, "State") for name in ("one", "two")} == {"one": "running", "two": "created"}

    asyncio.run(check())


def test_a_vm_that_does_not_answer_holds_up_nobody(bus: PrivateBus, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again, so it is known as soon as it does answer."""
    monkeypatch.setattr("vmservice.manager.looks.FIRST_RETRY_SEC", 0.1)

    async def check() -> None:
        async with client(bus.address) as hung, served_vm(bus.address, "demo"):
            answers = asyncio.Event()

            def answer(message: Message) -> Message | bool:
                if not answers.is_set():
                    return True
                return Message.new_method_return(message, "v", [Variant("s", "paused")])

            hung.bus.add_message_handler(lambda message: answer(message) if message.member == "Get" else None)
            await hung.bus.request_name(bus_name("hung"), NameFlag.DO_NOT_QUEUE)
            async with managing(bus.address, folder), desktop(bus.address) as seen:
                assert seen.names() == {"demo", "hung"}
                await seen.until(lambda: seen.get("demo", "State") == "created")
                assert seen.get("hung", "State") == ""
                answers.set()
                await seen.until(lambda: seen.get("hung", "State") == "paused")

    asyncio.run(check())


def test_a_vm_that_answers_in_another_type_has_no_state(bus: PrivateBus, folder: Path) -> None:
    """It is asked again, too, and no look at it is a traceback in the log."""

    async def check() -> None:
        async with client(bus.address) as odd, served_vm(bus.address, "demo"):
            asked: list[Message] = []

            def answer(message: Message) -> Message | None:
                if message.member != "Get":
                    return None
                asked.append(message)
                value: list[object] = ["running"] if len(asked) == 1 else [Variant("s", "paused")]
                return Message.new_method_return(message, "s" if len(asked) == 1 else "v", value)

            odd.bus.add_message_handler(answer)
            await odd.bus.request_name(bus_name("odd"), NameFlag.DO_NOT_QUEUE)
            async with managing(bus.address, folder) as made, desktop(bus.address) as seen:
                await seen.until(lambda: seen.get("demo", "State") == "created")
                await seen.until(lambda: seen.get("odd", "State") == "paused")
                assert made.log == ["systemd is not on this bus: the states of units are not known"]

    asyncio.run(check())


def test_what_a_stranger_says_is_not_believed(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "demo")

    async def check() -> None:
        async with (
            managing(bus.address, folder),
            desktop(bus.address) as seen,
            served_vm(bus.address, "real") as real,
            client(bus.address) as stranger,
        ):
            await seen.until(lambda: seen.get("real", "State") == "created")
            changed = [VM1, {"State": Variant("s", "running")}, []]
            stranger.bus.send(Message.new_signal(VM1_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", changed))
            gone = [bus_name("real"), ":1.5", ""]
            daemon = "org.freedesktop.DBus"
            stranger.bus.send(Message.new_signal("/org/freedesktop/DBus", daemon, "NameOwnerChanged", "sss", gone))
            unit = ["vm@fake.service", "/org/freedesktop/systemd1/unit/vm_40fake_2eservice"]
            manager = "org.freedesktop.systemd1.Manager"
            stranger.bus.send(Message.new_signal("/org/freedesktop/systemd1", manager, "UnitNew", "so", unit))
            await stranger.call("real", "Boot")  # what is behind these
            await seen.until(lambda: seen.get("real", "State") == "running")
            assert seen.names() == {"demo", "real"}
            assert real.vm.state == "running"

    asyncio.run(check())


def test_wrong_calls(bus: PrivateBus, folder: Path) -> None:
    configure(folder, "demo")

    async def check() -> None:
        async with managing(bus.address, folder) as made, desktop(bus.address) as seen:

            async def refused(member: str, signature: str = "", body: list[object] | None = None, **header: str) -> str:
                with pytest.raises(CallFailed) as failed:
                    await seen.call(member, signature, body, **header)
                return failed.value.name.removeprefix(_ERROR)

            demo = vm_path("demo")
            assert await refused("Pause") == "UnknownMethod"
            assert await refused("GetVM") == "InvalidArgs"
            assert await refused("GetVM", "u", [5]) == "InvalidArgs"
            assert await refused("Start", path=demo, interface=VM_INTERFACE) == "UnknownMethod"
            assert await refused("ListVMs", path=demo) == "UnknownInterface"
            assert await refused("GetManagedObjects", path=demo, interface=OBJECT_MANAGER) == "UnknownInterface"
            assert await refused("ListVMs", path="/nowhere") == "UnknownObject"
            assert await refused("ListVMs", path=f"{VMS_PATH}/nobody") == "UnknownObject"
            assert await refused("ListVMs", path=VMS_PATH) == "UnknownObject"
            assert await refused("Get", "ss", [VM_INTERFACE, "Cpus"], path=demo, interface=PROPERTIES) == "UnknownProperty"
            assert await refused("Get", "ss", [VM1, "State"], path=demo, interface=PROPERTIES) == "UnknownInterface"
            value = [VM_INTERFACE, "State", Variant("s", "x")]
            assert await refused("Set", "ssv", value, path=demo, interface=PROPERTIES) == "PropertyReadOnly"
            assert await refused("GetVM", "s", ["x" * 70_000]) == "LimitsExceeded"
            assert made.log == ["systemd is not on this bus: the states of units are not known"]

    asyncio.run(check())


def test_it_stays_for_those_who_have_called(bus: PrivateBus, folder: Path) -> None:
    async def check() -> None:
        async with managing(bus.address, folder) as made:
            async with desktop(bus.address) as first, desktop(bus.address):
                assert made.clock.pending == 0
                made.idle_for_a_minute()
                configure(folder, "demo")
                await first.until(lambda: first.names() == {"demo"})
            async with asyncio.timeout(TIMEOUT_SEC):
                while not made.clock.pending:  # until the bus has told that both have gone
                    await asyncio.sleep(0.01)
            async with desktop(bus.address) as third:
                made.idle_for_a_minute()
                await third.call("ListVMs")
                assert made.leaving == 0

    asyncio.run(check())


def test_it_leaves_when_nobody_uses_it(bus: PrivateBus, folder: Path) -> None:
    async def check() -> None:
        async with managing(bus.address, folder) as made, client(bus.address) as caller:
            made.idle_for_a_minute()
            async with asyncio.timeout(TIMEOUT_SEC):
                while await caller.call("", "NameHasOwner", "s", [INTERFACE], **_DAEMON):
                    await asyncio.sleep(0.01)
            assert made.leaving == 1

    asyncio.run(check())


def test_what_is_called_while_it_leaves_is_answered_or_refused(bus: PrivateBus, folder: Path) -> None:
    """With activation a refusal is a new manager."""

    async def check() -> None:
        async with managing(bus.address, folder) as made, client(bus.address) as caller:
            calls = [
                caller.bus.call(Message(destination=INTERFACE, path=OBJECT_PATH, interface=INTERFACE, member="ListVMs"))
                for _ in range(50)
            ]
            made.manager.close()
            async with asyncio.timeout(TIMEOUT_SEC):
                replies = await asyncio.gather(*calls)
            assert {reply.error_name for reply in replies} <= {None, f"{_ERROR}ServiceUnknown"}

    asyncio.run(check())


def test_a_stop_does_not_wait_for_a_bus_that_hangs(own_bus: PrivateBus, folder: Path) -> None:
    own_bus.start()
    own_bus.freeze()

    async def check() -> None:
        made = Managing(own_bus.address, folder)
        run = asyncio.ensure_future(made.manager.run())
        await asyncio.sleep(0)  # it has begun
        made.manager.close()
        await run
        assert not made.acquired.is_set()

    asyncio.run(check())


def test_with_more_callers_than_it_can_watch_it_stays(bus: PrivateBus, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "CALLERS_LIMIT", 1)

    async def check() -> None:
        async with managing(bus.address, folder) as made:
            async with desktop(bus.address), desktop(bus.address) as second:
                await second.call("ListVMs")
            async with desktop(bus.address) as third:
                await third.call("ListVMs")
                made.idle_for_a_minute()
                await third.call("ListVMs")
            assert (made.clock.pending, made.leaving) == (0, 0)

    asyncio.run(check())


def test_the_bus_restarts(own_bus: PrivateBus, folder: Path) -> None:
    configure(folder, "demo")
    own_bus.start()

    async def check() -> None:
        async with managing(own_bus.address, folder) as made, served_vm(own_bus.address, "web") as served:
            async with desktop(own_bus.address) as seen:
                await seen.until(lambda: seen.get("web", "State") == "created")
                own_bus.kill()
            made.acquired.clear()
            served.vm.boot()
            own_bus.start()
            async with asyncio.timeout(TIMEOUT_SEC):
                await made.acquired.wait()
            await served.until(lambda: served.acquired > 1)
            async with desktop(own_bus.address) as seen:
                await seen.until(lambda: seen.get("web", "State") == "running")
                assert seen.names() == {"demo", "web"}

    asyncio.run(check())


def test_a_second_manager_says_why_it_ends(bus: PrivateBus, folder: Path) -> None:
    async def check() -> None:
        async with managing(bus.address, folder):
            with pytest.raises(HostError, match="already owned: is a manager running already"):
                async with managing(bus.address, folder):
                    pass

    asyncio.run(check())


def test_names_that_anybody_may_take_are_shown_up_to_a_limit(
    bus: PrivateBus, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VM's account may have any number of names; they leave room for the VMs that have files."""
    monkeypatch.setattr(model, "STRANGERS_LIMIT", 3)
    configure(folder, "demo")

    async def check() -> None:
        async with managing(bus.address, folder) as made, desktop(bus.address) as seen, client(bus.address) as greedy:
            greedy.bus.add_message_handler(
                lambda call: Message.new_error(call, f"{_ERROR}Failed", "") if call.path == VM1_PATH else None
            )
            for number in range(5):
                await greedy.bus.request_name(bus_name(f"x{number}"), NameFlag.DO_NOT_QUEUE)
            configure(folder, "late")
            await seen.until(lambda: "late" in seen.names())
            assert seen.names() == {"demo", "late", "x0", "x1", "x2"}
            assert made.log[-1] == "there are more VMs than the manager shows: x3 is the first that is left out"

    asyncio.run(check())


def test_many_vms_and_a_flood_of_questions(bus: PrivateBus, folder: Path) -> None:
    configure(folder, *(f"vm{number}" for number in range(100)))

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen, client(bus.address) as flood:
            assert len(seen.objects) == 100
            asked = [_ask(flood.bus) for _ in range(40)]
            (folder / "vm7.toml").unlink()
            await seen.until(lambda: len(seen.objects) == 99)
            for reply in await asyncio.gather(*asked):
                refused = reply.error_name == f"{_ERROR}LimitsExceeded"
                assert refused or len(reply.body[0]) in (99, 100)

    asyncio.run(check())


async def _ask(bus: MessageBus) -> Message:
    call = Message(destination=INTERFACE, path=OBJECT_PATH, interface=OBJECT_MANAGER, member="GetManagedObjects")
    async with asyncio.timeout(3 * TIMEOUT_SEC):
        return await bus.call(call)


def test_busctl(bus: PrivateBus, folder: Path) -> None:
    """What people will type."""
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")
    configure(folder, "demo", "web-1")

    async def busctl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "busctl", f"--address={bus.address}", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 20)
        return output.decode() + errors.decode()

    async def check() -> None:
        async with managing(bus.address, folder):
            tree = await busctl("tree", "--list", INTERFACE)
            assert tree.split() == [
                *("/", "/org", "/org/vmservice", OBJECT_PATH, VMS_PATH),
                *(vm_path("demo"), vm_path("web-1")),
            ]
            shown = await busctl("introspect", INTERFACE, vm_path("web-1"), VM_INTERFACE)
            table = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
            assert table[".Name"] == ["property", "s", '"web-1"', "const"]
            assert table[".State"] == ["property", "s", '""', "emits-change"]
            assert ".GetVM" in await busctl("introspect", INTERFACE, OBJECT_PATH)

    asyncio.run(check())


def test_a_call_without_an_interface(bus: PrivateBus, folder: Path) -> None:
    """The D-Bus specification lets a caller leave it out."""

    async def check() -> None:
        async with managing(bus.address, folder), desktop(bus.address) as seen:
            assert await _without_interface(seen, "ListVMs") == []
            assert len(await _without_interface(seen, "GetMachineId")) == 32

    asyncio.run(check())


async def _without_interface(seen: Desktop, member: str) -> list[object]:
    reply = await seen.caller.bus.call(Message(destination=INTERFACE, path=OBJECT_PATH, member=member))
    answer: list[object] = reply.body[0]
    return answer


_DAEMON = {
    "destination": "org.freedesktop.DBus",
    "path": "/org/freedesktop/DBus",
    "interface": "org.freedesktop.DBus",
}
