"""VMs as the bus shows them: which there are, what they say of themselves, and what they answer to the verbs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from dbus_next.signature import Variant

from vmservice.client.bus import WRONG_TYPE, Bus, CallFailed, NotInTime, printable
from vmservice.client.systemctl import systemctl_line
from vmservice.config.names import check_name, config_path, configured_names, has_drop_ins, natural_key
from vmservice.control.authority import INTERACTIVE_TIMEOUT_SEC
from vmservice.control.errors import ACCESS_DENIED, ERROR_NAMES, FAILED, INTERACTION_REQUIRED
from vmservice.control.names import INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE, bus_name
from vmservice.errors import GuestNotResponding, HostError, HostFacilityMissing, NotPermitted, UsageError, VmmError, seconds

# A VM answers a look from its own tables. A verb may wait for the guest (Resize: 20 s), and before that for a person who gives
# a password: the VM's own limit comes first.
LOOK_TIMEOUT_SEC = 2.0
VERB_TIMEOUT_SEC = 120.0
PASSWORD_TIMEOUT_SEC = INTERACTIVE_TIMEOUT_SEC + VERB_TIMEOUT_SEC
# How many VMs are asked at a time: dbus-daemon's system bus lets a connection wait for 128 answers.
LOOKS_AT_A_TIME = 32

# Whatever a counter counts, the host does it with 64 bits.
_COUNTER_MAX = 2.0**64

_ERROR = "org.freedesktop.DBus.Error."
NOBODY_THERE = (f"{_ERROR}ServiceUnknown", f"{_ERROR}NameHasNoOwner")
GONE = f"{_ERROR}NoReply"
_DENIED = (ACCESS_DENIED, INTERACTION_REQUIRED)


class Refused(VmmError):
    """The VM would not, and said why; nothing has changed."""

    exit_status = 1


class NotRunning(HostFacilityMissing):
    """No process has the VM's name on the bus."""


class NoSuchVm(NotRunning):
    """Nor has it a configuration: perhaps `name` is another one's, mistyped."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True)
class DeviceFacts:
    """An entry of `Devices`; values of `details` are str, int or bool."""

    kind: str
    name: str
    details: Mapping[str, object]

    @classmethod
    def of(cls, entry: object) -> DeviceFacts | None:
        """From what came over the bus; None for what is no such entry."""
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, str, dict]:
            return None
        details = {
            printable(key): printable(variant.value) if isinstance(variant.value, str) else variant.value
            for key, variant in entry[2].items()
            if isinstance(key, str) and isinstance(variant, Variant) and isinstance(variant.value, str | int)
        }
        return cls(printable(entry[0]), printable(entry[1]), details)


@dataclass(frozen=True)
class Facts:
    """What a VM says of itself. None is what it did not say; then `error` may have the reason."""

    name: str
    state: str | None = None
    vcpus: int | None = None
    max_vcpus: int | None = None
    memory: int | None = None
    last_exit: str | None = None
    guest_ready: bool | None = None
    devices: tuple[DeviceFacts, ...] | None = None
    stats: Mapping[str, float] | None = None
    error: str | None = None

    @classmethod
    def of(cls, name: str, properties: Mapping[str, object]) -> Facts:
        """From the values of the D-Bus properties; one of a type that it should not have was not said."""

        def text(key: str) -> str | None:
            value = properties.get(key)
            return printable(value) if isinstance(value, str) else None

        def number(key: str) -> int | None:
            value = properties.get(key)
            return value if type(value) is int else None  # and no bool

        ready = properties.get("GuestReady")
        devices = properties.get("Devices")
        entries = [DeviceFacts.of(entry) for entry in devices] if isinstance(devices, list) else None
        stats = properties.get("Stats")
        return cls(
            name,
            text("State"),
            number("VCPUs"),
            number("MaxVCPUs"),
            number("Memory"),
            text("LastExit"),
            ready if isinstance(ready, bool) else None,
            tuple(entry for entry in entries if entry is not None) if entries is not None else None,
            {
                printable(key): value
                for key, value in stats.items()
                if isinstance(key, str) and isinstance(value, float) and 0 <= value <= _COUNTER_MAX  # not infinite, nor NaN
            }
            if isinstance(stats, dict)
            else None,
        )


async def running_names(bus: Bus) -> list[str]:
    """The names of all VMs on the bus, in their natural order. A bus name that no VM could have is nobody's."""
    try:
        (owned,) = await bus.ask_daemon("ListNames")
    except CallFailed as failed:
        raise HostError(f"the {bus.kind} bus does not list its names: {failed.text}") from None
    prefix = f"{INTERFACE}."
    found = (name_of_label(name.removeprefix(prefix)) for name in owned if name.startswith(prefix))
    return sorted((name for name in found if name is not None), key=natural_key)


def name_of_label(label: str) -> str | None:
    """The VM whose bus name ends in `label`; None unless some VM's name gives just this label."""
    name, rest = "", label
    while rest:
        char, rest = rest[0], rest[1:]
        if char == "_":
            try:
                char, rest = chr(int(rest[:2], 16)), rest[2:]
            except ValueError:
                return None
        name += char
    try:
        check_name(name)
    except UsageError:
        return None
    return name if bus_name(name) == f"{INTERFACE}.{label}" else None


async def facts(bus: Bus, name: str, timeout_sec: float | None = None) -> Facts:
    """What the VM says of itself; raises what `failure` makes of an error. The limit is LOOK_TIMEOUT_SEC unless given."""
    limit_sec = LOOK_TIMEOUT_SEC if timeout_sec is None else timeout_sec
    try:
        target = (bus_name(name), OBJECT_PATH, PROPERTIES_INTERFACE)
        (values,) = await bus.call(*target, "GetAll", "s", [INTERFACE], timeout_sec=limit_sec, returns="a{sv}")
    except TimeoutError:
        raise NotInTime(f"the VM {name} did not answer within {seconds(limit_sec)}") from None
    except CallFailed as failed:
        raise failure(bus, name, "look at", failed) from None
    return Facts.of(name, {key: variant.value for key, variant in values.items()})


async def process_id(bus: Bus, name: str) -> int | None:
    """The process that has the VM's name, if the bus tells."""
    try:
        (pid,) = await bus.ask_daemon("GetConnectionUnixProcessID", "s", [bus_name(name)])
    except (CallFailed, ValueError):
        return None
    return int(pid)


async def call_verb(bus: Bus, name: str, member: str, vcpus: int | None = None) -> None:
    """Call a method of the VM and wait until its work is done; `vcpus` is Resize's argument.

    Where polkit wants a password, and the person may be asked, it is asked for and the method called again.
    """
    try:
        await _call_verb(bus, name, member, vcpus, timeout_sec=VERB_TIMEOUT_SEC)
    except CallFailed as failed:
        if failed.name != INTERACTION_REQUIRED or not bus.agent.allowed:
            raise failure(bus, name, member, failed) from None
    else:
        return
    async with bus.agent.turn:
        await bus.agent.begin()
        try:
            await _call_verb(bus, name, member, vcpus, timeout_sec=PASSWORD_TIMEOUT_SEC, interactive=True)
        except CallFailed as failed:
            raise failure(bus, name, member, failed) from None


async def _call_verb(
    bus: Bus, name: str, member: str, vcpus: int | None, *, timeout_sec: float, interactive: bool = False
) -> None:
    """Raises CallFailed, or NotInTime."""
    signature, arguments = ("", []) if vcpus is None else ("y", [vcpus])
    target = (bus_name(name), OBJECT_PATH, INTERFACE)
    try:
        await bus.call(*target, member, signature, arguments, timeout_sec=timeout_sec, interactive=interactive)
    except TimeoutError:
        raise NotInTime(f"the VM {name} did not answer {member} within {seconds(timeout_sec)}; it may still do it") from None


def is_configured(name: str, *, user: bool) -> bool:
    """Whether the VM has a configuration, or may have one where this account cannot look."""
    path = config_path(name, user=user)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError:
        return True
    else:
        return True
    return has_drop_ins(path)


def not_running(name: str, *, user: bool) -> NotRunning:
    """What is said of a VM without a process, with the way to start it if there is any."""
    if is_configured(name, user=user):
        return NotRunning(f"the VM {name} is not running; `{systemctl_line('start', name, user=user)}` starts it")
    path = config_path(name, user=user)
    return NoSuchVm(name, f"the VM {name} does not exist: it does not run, and there is no {path}")


async def with_near_name(bus: Bus, error: VmmError) -> VmmError:
    """What is raised for a VM that does not exist names the one that was perhaps meant, of those that run or are configured."""
    if not isinstance(error, NoSuchVm):
        return error
    running = await running_names(bus)
    return NoSuchVm(error.name, f"{error}{_near(error.name, running, user=bus.user)}")


def near_name(name: str, *, user: bool) -> str:
    """`; did you mean NAME?` where the VM has no configuration and another one of nearly that name has; else nothing."""
    return "" if is_configured(name, user=user) else _near(name, [], user=user)


def _near(name: str, others: list[str], *, user: bool) -> str:
    from vmservice.client.parser import near

    with contextlib.suppress(OSError):
        others = [*others, *configured_names(user=user)]
    return near(name, others)


def failure(bus: Bus, name: str, what: str, failed: CallFailed) -> VmmError:
    """What a person is told about the error that answered `what` ("Pause")."""
    if failed.by_bus and failed.name in NOBODY_THERE:
        return not_running(name, user=bus.user)
    if failed.by_bus and failed.name == GONE:
        return NotRunning(f"the VM {name} ended before it answered")
    if failed.name == WRONG_TYPE:
        return Refused(f"the VM {name} does not answer as a VM does: {failed.text}")
    if failed.name in _DENIED and failed.by_bus:
        return NotPermitted(f"this account may not {what} the VM {name}; root and members of group vmservice may")
    if failed.name in _DENIED:
        return NotPermitted(failed.text or f"this account may not {what} the VM {name}")
    if failed.name == ERROR_NAMES[GuestNotResponding]:
        return GuestNotResponding(failed.text)
    if failed.name == FAILED:
        return HostError(failed.text)
    if failed.name.startswith(f"{INTERFACE}.Error."):
        return Refused(failed.text or f"the VM {name} refused: {failed.name}")
    return Refused(f"the VM {name} could not be asked to {what}: {failed.text or failed.name}")
