"""The bus policy, held by a real dbus-daemon of the system's type, for callers of several accounts."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.bus_client import served_vm
from support.managed import managing
from support.private_bus import PrivateBus

from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name
from vmservice.manager.names import INTERFACE as MANAGER_NAME
from vmservice.manager.names import OBJECT_PATH as MANAGER_PATH

POLICY = Path(__file__).parents[2] / "dbus" / "org.vmservice.VM1.conf"
MANAGER_POLICY = POLICY.with_name("org.vmservice.Manager1.conf")
DAEMON = "org.freedesktop.DBus"
PROPERTIES = f"{DAEMON}.Properties"
DENIED = f"{DAEMON}.Error.AccessDenied"

# Accounts that every Debian has. The member's group stands for the group vmservice, which need not exist here.
MEMBER = "games"
STRANGER = "nobody"
# It stands for the manager's account.
MANAGER = "mail"

# As /usr/share/dbus-1/system.conf has it.
SYSTEM_DEFAULT = """
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
  <include>{manager_policy}</include>"""


@pytest.fixture(scope="module")
def system_bus(tmp_path_factory: pytest.TempPathFactory) -> PrivateBus:  # type: ignore[misc]
    if os.geteuid() != 0:
        pytest.skip("only root can call as other accounts")
    if shutil.which("dbus-send") is None:
        pytest.skip("dbus-send is not installed")
    group = grp.getgrgid(pwd.getpwnam(MEMBER).pw_gid).gr_name
    ours = tmp_path_factory.mktemp("policy") / POLICY.name
    ours.write_text(POLICY.read_text("utf-8").replace('group="vmservice"', f'group="{group}"'), "utf-8")
    managers = ours.with_name(MANAGER_POLICY.name)
    managers.write_text(MANAGER_POLICY.read_text("utf-8").replace('user="vmservice-manager"', f'user="{MANAGER}"'), "utf-8")
    with PrivateBus(SYSTEM_DEFAULT.format(policy=ours, manager_policy=managers), kind="system") as bus:
        yield bus


@pytest.fixture(autouse=True)
def accounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files of accounts and groups, with the member in group vmservice."""
    user = pwd.getpwnam(MEMBER)
    (tmp_path / "passwd").write_text(f"{MEMBER}:x:{user.pw_uid}:{user.pw_gid}:::\n")
    (tmp_path / "group").write_text(f"vmservice:x:980:{MEMBER}\n")
    monkeypatch.setattr("vmservice.host.accounts.ACCOUNT_FILE", str(tmp_path / "passwd"))
    monkeypatch.setattr("vmservice.host.accounts.GROUP_FILE", str(tmp_path / "group"))


def send(bus: PrivateBus, account: str, destination: str, path: str, member: str, *arguments: str) -> str:
    """The error's name and text, or the reply; blocks, so it belongs in a thread."""
    user = pwd.getpwnam(account)
    result = subprocess.run(
        ["dbus-send", f"--bus={bus.address}", "--print-reply", f"--dest={destination}", path, member, *arguments],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return result.stdout if result.returncode == 0 else result.stderr


def own(bus: PrivateBus, account: str, name: str) -> str:
    return send(bus, account, DAEMON, "/org/freedesktop/DBus", f"{DAEMON}.RequestName", f"string:{name}", "uint32:4")


async def call(bus: PrivateBus, account: str, member: str, *arguments: str, path: str = OBJECT_PATH) -> str:
    return await asyncio.to_thread(send, bus, account, bus_name("demo"), path, member, *arguments)


def test_who_may_own_a_name(system_bus: PrivateBus) -> None:
    for account in ("root", MEMBER):
        assert "uint32 1" in own(system_bus, account, bus_name("one"))
        assert "uint32 1" in own(system_bus, account, INTERFACE)
        assert DENIED in own(system_bus, account, "org.vmservice.VM2")
    assert DENIED in own(system_bus, STRANGER, bus_name("one"))


def test_who_may_speak_for_all_vms(system_bus: PrivateBus) -> None:
    """Neither a stranger nor an account that VMs run as; and the manager's may not speak for a VM."""
    for account in ("root", MANAGER):
        assert "uint32 1" in own(system_bus, account, MANAGER_NAME)
    for account in (MEMBER, STRANGER):
        assert DENIED in own(system_bus, account, MANAGER_NAME)
    assert DENIED in own(system_bus, MANAGER, bus_name("one"))


def test_everybody_may_ask_the_manager(system_bus: PrivateBus, tmp_path: Path) -> None:
    async def check() -> None:
        async with managing(system_bus.address, tmp_path):
            for account in ("root", MEMBER, STRANGER):

                async def ask(member: str, *arguments: str, account: str = account, path: str = MANAGER_PATH) -> str:
                    return await asyncio.to_thread(send, system_bus, account, MANAGER_NAME, path, member, *arguments)

                assert "array" in await ask(f"{MANAGER_NAME}.ListVMs")
                assert "array" in await ask(f"{DAEMON}.ObjectManager.GetManagedObjects")
                assert "<node" in await ask(f"{DAEMON}.Introspectable.Introspect", path="/")
                assert "1.2.3" in await ask(f"{PROPERTIES}.GetAll", f"string:{MANAGER_NAME}")

    asyncio.run(check())


def test_everybody_may_look(system_bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(system_bus.address):
            for account in ("root", MEMBER, STRANGER):
                state = await call(system_bus, account, f"{PROPERTIES}.Get", f"string:{INTERFACE}", "string:State")
                assert 'string "created"' in state
                assert "MaxVCPUs" in await call(system_bus, account, f"{PROPERTIES}.GetAll", f"string:{INTERFACE}")
                assert "<node" in await call(system_bus, account, f"{DAEMON}.Introspectable.Introspect")
                assert "method return" in await call(system_bus, account, f"{DAEMON}.Peer.Ping")

    asyncio.run(check())


def test_who_may_act_where_there_is_no_polkit(system_bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(system_bus.address) as served:
            refused = await call(system_bus, STRANGER, f"{INTERFACE}.Boot")
            assert f"{DENIED}: org.vmservice.vm1.boot is not authorized: polkit cannot be asked" in refused
            assert served.vm.state == "created"
            assert "method return" in await call(system_bus, MEMBER, f"{INTERFACE}.Boot")
            assert "method return" in await call(system_bus, "root", f"{INTERFACE}.Resize", "byte:2")
            assert DENIED in await call(system_bus, STRANGER, f"{INTERFACE}.Shutdown")
            assert served.vm.state == "running"

    asyncio.run(check())


def test_an_account_that_runs_vms_controls_none(system_bus: PrivateBus, tmp_path: Path) -> None:
    """Its group lets it own a VM's name, and no more: a VMM that is taken over stays alone."""
    (tmp_path / "group").write_text(f"vmservice:x:{pwd.getpwnam(MEMBER).pw_gid}:{MEMBER}\n")

    async def check() -> None:
        async with served_vm(system_bus.address) as served:
            assert DENIED in await call(system_bus, MEMBER, f"{INTERFACE}.Boot")
            assert served.vm.state == "created"

    asyncio.run(check())


def test_nobody_may_set_and_only_the_trusted_walk_the_tree(system_bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(system_bus.address):
            for account in ("root", MEMBER, STRANGER):
                answer = await call(
                    system_bus, account, f"{PROPERTIES}.Set", f"string:{INTERFACE}", "string:State", "variant:string:x"
                )
                assert DENIED in answer
            for path in ("/", "/org", "/org/vmservice"):
                for account in ("root", MEMBER):
                    assert "<node" in await call(system_bus, account, f"{DAEMON}.Introspectable.Introspect", path=path)
                assert DENIED in await call(system_bus, STRANGER, f"{DAEMON}.Introspectable.Introspect", path=path)

    asyncio.run(check())


def test_the_rules_mean_the_same_to_every_bus() -> None:
    """dbus-broker skips send_destination_prefix, so the rest of such a rule would hold for every service; and a deny with
    send_interface catches calls to others. See the file."""
    rules = [rule for policy in ET.parse(POLICY).getroot() for rule in policy]
    assert {rule.tag for rule in rules} == {"allow"}
    attributes = {name for rule in rules for name in rule.attrib}
    assert attributes == {"own_prefix", "send_interface", "send_member", "send_path"}
    for rule in rules:
        assert rule.attrib.get("own_prefix", INTERFACE) == INTERFACE
        assert "own_prefix" in rule.attrib or rule.attrib["send_interface"] == INTERFACE or "send_path" in rule.attrib
