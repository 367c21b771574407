"""Who may use a verb: what polkit is asked, what its answers mean, and that nothing is left of a question without an answer."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from dbus_next import Message
from dbus_next.constants import MessageFlag
from support.bus_client import CallFailed, Client, Served, client, flooders, served_vm
from support.mock_service import mock_service
from support.private_bus import PrivateBus

from vmservice.control import authority, caller, turns
from vmservice.control.api import VERBS
from vmservice.control.authority import POLKIT, Authority
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name
from vmservice.control.turns import Turns

POLICY = Path(__file__).parents[2] / "dbus" / "org.vmservice.vm1.policy"

DENIED = "org.freedesktop.DBus.Error.AccessDenied"
INTERACTION = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
LIMITS = "org.freedesktop.DBus.Error.LimitsExceeded"

YES, NO, CHALLENGE = (True, False), (False, False), (False, True)


@pytest.fixture
def nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is a stranger, the account of the test too."""
    monkeypatch.setattr(caller, "is_trusted", lambda _uid: False)


def says(authorized: bool, challenge: bool) -> Callable[[Message], Message]:
    return lambda call: Message.new_method_return(call, "(bba{ss})", [[authorized, challenge, {}]])


def silent(_call: Message) -> None:
    """polkit, hung."""


def turns_of(served: Served) -> Turns:
    assert served.joined is not None
    found = served.joined._turns
    assert found is not None
    return found


def authority_of(served: Served) -> Authority:
    return turns_of(served)._authority


async def nothing_left(served: Served) -> None:
    """No check, no caller's name watched, no reply awaited."""
    waits, decides = turns_of(served), authority_of(served)
    async with asyncio.timeout(60):
        while decides._checks or waits._queues or decides._transport._awaited:
            await asyncio.sleep(0.01)


async def refused(caller: Client, member: str, *arguments: object, **header: object) -> CallFailed:
    with pytest.raises(CallFailed) as failure:
        await caller.call("demo", member, *arguments, **header)  # type: ignore[arg-type]
    return failure.value


@asynccontextmanager
async def several(address: str, count: int) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(address)) for _ in range(count)]


def test_each_verb_has_an_action_and_each_action_is_declared() -> None:
    declared = {action.attrib["id"]: action for action in ET.parse(POLICY).getroot().iter("action")}
    assert list(declared) == [verb.action for verb in VERBS]
    for action in declared.values():
        assert [choice.text for choice in action.findall("defaults/*")] == ["auth_admin", "auth_admin", "auth_admin_keep"]
        (owner,) = action.findall("annotate")
        assert (owner.attrib["key"], owner.text) == ("org.freedesktop.policykit.owner", "unix-user:vmservice")
        message = action.findtext("message")
        assert message is not None
        assert "$(vm)" in message


@pytest.mark.parametrize(
    ("uid", "trusted"),
    [
        (0, True),
        (4711, True),  # the VM's own account
        (1000, True),
        (1001, False),
        (1002, False),  # its name is a part of a member's
        (980, False),  # the account of VMs
        (981, False),  # one VM's own account, though it is a member too
        (61200, False),  # not in the file: from DynamicUser= or a directory
    ],
)
def test_who_needs_no_authorization(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, trusted: bool) -> None:
    accounts, groups = tmp_path / "passwd", tmp_path / "group"
    accounts.write_text(
        "broken:x:1001\nroot:x:0:0::/root:/bin/sh\nvmservice:x:980:980::/:/bin/false\nvm-web:x:981:980::/:/bin/false\n"
        "alice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\nali:x:1002:1002::/home/ali:/bin/sh\n"
        ":x:1003:1003::/:/bin/sh\n"
    )
    groups.write_text("root:x:0:\nnot-vmservice:x:1001:bob\nvmservice:x:980:alice,vm-web\n")
    monkeypatch.setattr("vmservice.host.accounts.ACCOUNT_FILE", str(accounts))
    monkeypatch.setattr("vmservice.host.accounts.GROUP_FILE", str(groups))
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert caller.is_trusted(uid) is trusted


def test_when_the_files_cannot_be_read_only_root_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when another VM of the account has taken our descriptors away."""
    monkeypatch.setattr("vmservice.host.accounts.ACCOUNT_FILE", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert [uid for uid in (0, 980, 1000, 4711, 61200) if caller.is_trusted(uid)] == [0]


def test_without_the_files_only_root_and_the_vms_own_account_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmservice.host.accounts.ACCOUNT_FILE", "/nowhere/passwd")
    monkeypatch.setattr("vmservice.host.accounts.GROUP_FILE", "/nowhere/group")
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert [uid for uid in (0, 980, 1000, 4711, 61200) if caller.is_trusted(uid)] == [0, 4711]


@pytest.mark.parametrize(
    ("answer", "interactive", "error"),
    [
        (YES, False, None),
        (YES, True, None),
        (NO, False, DENIED),
        (NO, True, DENIED),
        (CHALLENGE, False, INTERACTION),
        (CHALLENGE, True, DENIED),
    ],
)
@pytest.mark.usefixtures("nobody_trusted")
def test_what_polkit_is_asked_and_what_its_answer_means(
    bus: PrivateBus, answer: tuple[bool, bool], interactive: bool, error: str | None
) -> None:
    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as caller,
            mock_service(bus.address, POLKIT, says(*answer)) as polkit,
        ):
            flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
            if error is None:
                await caller.call("demo", "Boot", flags=flags)
            else:
                assert (await refused(caller, "Boot", flags=flags)).name == error
            assert served.vm.state == ("created" if error else "running")
            question = await polkit.asked("CheckAuthorization")
            assert (question.path, question.signature) == ("/org/freedesktop/PolicyKit1/Authority", "(sa{sv})sa{ss}us")
            (kind, details), action, about, asked_flags, cancellation = question.body
            assert (kind, details["name"].value) == ("system-bus-name", caller.bus.unique_name)
            assert (action, about, asked_flags) == ("org.vmservice.vm1.boot", {"vm": "demo"}, int(interactive))
            assert cancellation
            await nothing_left(served)

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_every_verb_is_asked_about_and_nothing_else_is(bus: PrivateBus) -> None:
    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as caller,
            mock_service(bus.address, POLKIT, says(*NO)) as polkit,
        ):
            for verb in VERBS:
                failure = await refused(caller, verb.member, verb.signature, [2] if verb.signature else [])
                assert (failure.name, failure.text) == (DENIED, f"{verb.action} is not authorized")
            assert [question.body[1] for question in polkit.calls] == [verb.action for verb in VERBS]
            await caller.get("demo", "State")
            await caller.call("demo", "Introspect", interface="org.freedesktop.DBus.Introspectable")
            assert (await refused(caller, "Boot", "s", ["now"])).name.endswith("InvalidArgs")
            assert (await refused(caller, "Explode")).name.endswith("UnknownMethod")
            assert len(polkit.calls) == len(VERBS)
            # Without an interface it is the same method.
            assert (await refused(caller, "Boot", interface=None)).name == DENIED
            assert served.vm.state == "created"

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_a_call_that_wants_no_reply_is_judged_as_well(bus: PrivateBus) -> None:
    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as caller,
            mock_service(bus.address, POLKIT, says(*NO)) as polkit,
        ):
            quiet = Message(
                destination=bus_name("demo"),
                path=OBJECT_PATH,
                interface=INTERFACE,
                member="Boot",
                flags=MessageFlag.NO_REPLY_EXPECTED,
            )
            await caller.bus.send(quiet)
            await polkit.asked("CheckAuthorization")
            await nothing_left(served)
            assert served.vm.state == "created"
            assert "reply" not in caller.traffic

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_polkit_hangs(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are served meanwhile, one account may have a few checks under way, one a caller, and each ends with a refusal."""

    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            several(bus.address, authority.CHECKS_LIMIT_AN_ACCOUNT) as callers,
            client(bus.address) as other,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            calls = [asyncio.ensure_future(refused(caller, "Boot")) for caller in callers]
            await polkit.asked("CheckAuthorization", len(calls))
            assert await other.get("demo", "State") == "created"
            assert (await refused(other, "Boot")).name == LIMITS
            for question in polkit.calls:
                await polkit.bus.send(says(*NO)(question))
            for failure in await asyncio.gather(*calls):
                assert failure.name == DENIED
            polkit.calls.clear()
            monkeypatch.setattr(authority, "CHECK_TIMEOUT_SEC", 0.3)
            for failure in await asyncio.gather(*(refused(caller, "Boot") for caller in callers)):
                assert (failure.name, failure.text) == (
                    DENIED,
                    "org.vmservice.vm1.boot is not authorized: polkit cannot be asked",
                )
            await polkit.asked("CancelCheckAuthorization", len(calls))
            questions = {call.body[4] for call in polkit.calls if call.member == "CheckAuthorization"}
            assert questions == {call.body[0] for call in polkit.calls if call.member == "CancelCheckAuthorization"}
            assert len(questions) == len(calls)
            await nothing_left(served)
            (told,) = served.log
            assert told.startswith("polkit cannot be asked: it did not answer within 0.3 seconds; until it can, only root and")
            monkeypatch.setattr(authority, "CHECK_TIMEOUT_SEC", 60.0)  # now it does answer, and on any machine
            polkit.answer = says(*YES)
            await other.call("demo", "Boot")

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_the_number_of_checks_is_bounded_for_all_together(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "CHECKS_LIMIT", 2)

    async def check() -> None:
        async with (
            served_vm(bus.address),
            several(bus.address, 2) as callers,
            client(bus.address) as other,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            calls = [asyncio.ensure_future(refused(caller, "Boot")) for caller in callers]
            await polkit.asked("CheckAuthorization", 2)
            assert (await refused(other, "Boot")).name == LIMITS
            await polkit.vanish()
            for call in calls:
                call.cancel()

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_the_caller_goes_away(bus: PrivateBus) -> None:
    """polkit is told to forget, and a late yes changes nothing."""

    async def check() -> None:
        async with served_vm(bus.address) as served, mock_service(bus.address, POLKIT, silent) as polkit:
            async with client(bus.address) as caller:
                call = asyncio.ensure_future(caller.call("demo", "Boot"))
                question = await polkit.asked("CheckAuthorization")
            with pytest.raises(Exception):  # noqa: B017 - whatever dbus-next makes of its own end
                await call
            cancelled = await polkit.asked("CancelCheckAuthorization")
            assert cancelled.body == [question.body[4]]
            await polkit.bus.send(Message.new_method_return(question, "(bba{ss})", [[True, False, {}]]))
            await nothing_left(served)
            assert served.vm.state == "created"

    asyncio.run(check())


def test_a_caller_that_went_before_it_was_watched_is_not_asked_about(bus: PrivateBus) -> None:
    """Else its place would be taken until polkit's time is up."""

    async def check() -> None:
        async with served_vm(bus.address) as served, mock_service(bus.address, POLKIT, silent) as polkit:
            gone: list[str] = []
            decides = authority_of(served)
            decides.on_gone = gone.append
            call = Message(destination=bus_name("demo"), path=OBJECT_PATH, interface=INTERFACE, member="Boot")
            async with asyncio.timeout(60):
                assert await decides.check(caller.Caller(":1.4711", 4711), call) is not None
            assert gone == [":1.4711"]
            assert polkit.calls == []
            await nothing_left(served)

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_nobody_can_pretend_that_a_caller_went_away(bus: PrivateBus) -> None:
    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as caller,
            client(bus.address) as liar,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            call = asyncio.ensure_future(caller.call("demo", "Boot"))
            question = await polkit.asked("CheckAuthorization")
            lie = Message.new_signal(
                "/org/freedesktop/DBus",
                "org.freedesktop.DBus",
                "NameOwnerChanged",
                "sss",
                [question.body[0][1]["name"].value, "x", ""],
            )
            lie.destination = bus_name("demo")
            await liar.bus.send(lie)
            await liar.get("demo", "State")
            await polkit.bus.send(Message.new_method_return(question, "(bba{ss})", [[True, False, {}]]))
            await call
            assert served.vm.state == "running"

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_polkit_goes_away_in_the_middle(own_bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(own_bus.address) as served, client(own_bus.address) as caller:
            async with mock_service(own_bus.address, POLKIT, silent) as polkit:
                call = asyncio.ensure_future(refused(caller, "Boot"))
                await polkit.asked("CheckAuthorization")
            assert (await call).name == DENIED
            assert (await refused(caller, "Boot")).name == DENIED
            assert len(served.log) == 1, "an outage is told once"
            await nothing_left(served)

    own_bus.start()
    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_the_bus_goes_away_in_the_middle(own_bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(own_bus.address) as served:
            async with client(own_bus.address) as caller, mock_service(own_bus.address, POLKIT, silent) as polkit:
                call = asyncio.ensure_future(caller.call("demo", "Boot"))
                await polkit.asked("CheckAuthorization")
                decides = authority_of(served)
                own_bus.kill()
                with pytest.raises(Exception):  # noqa: B017 - whatever dbus-next makes of its own end
                    await call
                await served.until(lambda: bool(served.lost))
                async with asyncio.timeout(60):
                    while decides._checks:
                        await asyncio.sleep(0.01)
            own_bus.start()
            await served.until(lambda: served.acquired == 2)
            assert served.vm.state == "created"

    own_bus.start()
    asyncio.run(check())


def test_calls_of_one_caller_are_done_in_their_order(bus: PrivateBus) -> None:
    """The first ones wait until the bus has said who calls."""

    async def check() -> None:
        async with served_vm(bus.address) as served, client(bus.address) as caller:
            verbs = ["Boot", "Pause", "Resume", "Pause", "Shutdown", "Boot"]
            await asyncio.gather(*(caller.call("demo", verb) for verb in verbs))
            assert served.vm.state == "running"
            assert len(authority_of(served)._known) == 1

    asyncio.run(check())


def test_known_callers_and_waiting_calls_are_bounded(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "_KNOWN_LIMIT", 2)
    monkeypatch.setattr(turns, "WAITING_LIMIT_A_SENDER", 3)

    async def check() -> None:
        async with served_vm(bus.address) as served:
            for _ in range(4):
                async with client(bus.address) as caller:
                    assert (await refused(caller, "Pause")).name.endswith("InvalidStateTransition")
            assert len(authority_of(served)._known) == 2
            async with client(bus.address) as caller:
                failures = await asyncio.gather(*(refused(caller, "Pause") for _ in range(5)))
                assert [failure.name == LIMITS for failure in failures].count(True) == 2

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_on_the_session_bus_nobody_is_asked(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)

    async def check() -> None:
        async with served_vm("session") as served, client(bus.address) as caller:
            await caller.call("demo", "Boot")
            assert served.vm.state == "running"

    asyncio.run(check())


@pytest.mark.usefixtures("nobody_trusted")
def test_a_flood_of_strangers(bus: PrivateBus) -> None:
    """polkit is asked a few questions at a time, all others are turned away, and who only looks is served meanwhile."""

    async def check() -> None:
        async with (
            served_vm(bus.address) as served,
            client(bus.address) as honest,
            mock_service(bus.address, POLKIT, silent) as polkit,
        ):
            flood = await flooders(bus.address, authority.CHECKS_LIMIT_AN_ACCOUNT + 1, 2000)
            await polkit.asked("CheckAuthorization", authority.CHECKS_LIMIT_AN_ACCOUNT)
            assert await honest.get("demo", "State") == "created"
            assert len(authority_of(served)._checks) == authority.CHECKS_LIMIT_AN_ACCOUNT
            for flooder in flood:
                flooder.close()
            await nothing_left(served)
            members = [call.member for call in polkit.calls]
            await polkit.asked("CancelCheckAuthorization", members.count("CheckAuthorization"))
            members = [call.member for call in polkit.calls]
            assert members.count("CheckAuthorization") == members.count("CancelCheckAuthorization"), "each was taken back"

    asyncio.run(check())
