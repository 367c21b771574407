"""A VM's bus object for python-dbusmock: `python3 -m dbusmock --session --template …/vmservice/client/dbusmock_template.py`.

The verbs, the table of states and every error sentence are vmservice's own: a mocked VM answers as a real one does, only its
guest does nothing by itself. A test lets the guest act, or a call fail, by these methods of org.freedesktop.DBus.Mock:

* `GuestStops(s how)`: "poweroff", "reset", "panic", "watchdog" or "error". While paused that waits for Resume.
* `FailNextCall(s error_name, s text)`: the next method of org.vmservice.VM1 fails so, and changes nothing.

Parameters: VCPUs (1), MaxVCPUs (4), Memory (536870912 bytes), State ("running", or any other of the four). The VM's name is
"demo", or what the environment has as VMSERVICE_MOCK_NAME: dbusmock takes the bus name before it looks at parameters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import dbus

# dbusmock runs this file by its path, perhaps with an interpreter that does not know where vmservice is installed.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from vmservice.control.api import PROPERTIES, VERBS
from vmservice.control.errors import describe
from vmservice.control.names import INTERFACE, OBJECT_PATH, bus_name
from vmservice.errors import InvalidArgument, quoted
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.state import State
from vmservice.vm.vm import Vm

NAME = os.environ.get("VMSERVICE_MOCK_NAME", "demo")

# What dbusmock reads of a template.
BUS_NAME = bus_name(NAME)
MAIN_OBJ = OBJECT_PATH
MAIN_IFACE = INTERFACE
SYSTEM_BUS = True

MOCK_INTERFACE = "org.freedesktop.DBus.Mock"
GUEST_STOPS = (EventKind.POWEROFF, EventKind.RESET, EventKind.PANIC, EventKind.WATCHDOG, EventKind.ERROR)

_TYPES: dict[str, Callable[[Any], object]] = {
    "s": dbus.String,
    "y": dbus.Byte,
    "t": dbus.UInt64,
    "b": dbus.Boolean,
    "a(ssa{sv})": lambda devices: dbus.Array([_device(*device) for device in devices], signature="(ssa{sv})"),
    "a{sd}": lambda counters: dbus.Dictionary(counters, signature="sd"),
}
_DEVICES: list[tuple[str, str, dict[str, str | int | bool]]] = [("console", "serial", {"mode": "null"})]


class MockMachine:
    """Obeys as `vmservice.vm.machine_protocol.Machine` says, and does nothing."""

    def __init__(self, vcpus: int) -> None:
        self.vcpus = vcpus

    def start(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def press_power_button(self) -> None:
        """What follows is for the guest to decide, so for the test: GuestStops."""

    def set_vcpus(self, count: int) -> None:
        self.vcpus = count

    def settle_vcpus(self) -> None: ...

    def cancel_set_vcpus(self) -> None: ...

    def console_input(self, data: bytes, console: str = "serial") -> int:
        return len(data)

    def forget_input(self, console: str) -> None: ...

    def reconfigure(self, device: object) -> None: ...

    def stats(self) -> dict[str, float]:
        return {}

    def silent(self, patience_sec: float) -> list[str]:
        return []

    def describe(self) -> list[str]:
        return []

    def close(self) -> None: ...


class MockVm:
    """A VM behind the mock object `mock`, and what a test may do to it."""

    def __init__(self, mock: Any, parameters: Mapping[str, Any]) -> None:
        self._mock = mock
        self._machine: MockMachine | None = None
        self._failure: tuple[str, str] | None = None
        self.vm = Vm(
            name=NAME,
            vcpus=int(parameters.get("VCPUs", 1)),
            max_vcpus=int(parameters.get("MaxVCPUs", 4)),
            memory_bytes=int(parameters.get("Memory", 512 << 20)),
            build=self._build,
            call_later=_no_timer,
            devices=lambda: list(_DEVICES),
        )
        self._reach(str(parameters.get("State", State.RUNNING)))
        mock.AddProperties(MAIN_IFACE, _typed({**self.vm.properties(), "Stats": self.vm.stats()}))
        self.vm.subscribe(lambda changes: mock.UpdateProperties(MAIN_IFACE, _typed(changes)))

    def add_methods(self) -> None:
        for verb in VERBS:
            self._mock.AddMethod(MAIN_IFACE, verb.member, verb.signature, "", self._answer(getattr(self.vm, verb.method)))
        self._mock.AddMethod(MOCK_INTERFACE, "GuestStops", "s", "", lambda _mock, how: self.guest_stops(how))
        self._mock.AddMethod(MOCK_INTERFACE, "FailNextCall", "ss", "", lambda _mock, *error: self.fail_next_call(*error))

    def guest_stops(self, how: str) -> None:
        how = str(how)  # a dbus.String
        if how not in GUEST_STOPS or self._machine is None:
            raise _dbus_error(InvalidArgument(f"no guest can stop by {quoted(how)} now; {', '.join(GUEST_STOPS)} are known"))
        self.vm.on_guest_event(GuestEvent(self._machine, how))

    def fail_next_call(self, error_name: str, text: str) -> None:
        self._failure = (str(error_name), str(text))

    def _build(self, vcpus: int) -> MockMachine:
        self._machine = MockMachine(vcpus)
        return self._machine

    def _reach(self, state: str) -> None:
        ways = {
            State.CREATED: (),
            State.RUNNING: (self.vm.boot,),
            State.PAUSED: (self.vm.boot, self.vm.pause),
            State.SHUTDOWN: (self.vm.boot, self.vm.shutdown),
        }
        if state not in ways:
            raise _dbus_error(InvalidArgument(f"a VM has no state {quoted(state)}; {', '.join(ways)} are its states"))
        for verb in ways[state]:
            verb()

    def _answer(self, verb: Callable[..., object]) -> Callable[..., None]:
        """`verb` as dbusmock calls it: with the mock object first, and with errors of D-Bus."""

        def answer(_mock: Any, *arguments: Any) -> None:
            failure, self._failure = self._failure, None
            if failure is not None:
                raise dbus.exceptions.DBusException(failure[1], name=failure[0])
            try:
                verb(*(int(argument) for argument in arguments))
            except Exception as error:
                raise _dbus_error(error) from None

        return answer


def load(mock: Any, parameters: Mapping[str, Any]) -> None:
    """What dbusmock calls to fill the object in."""
    MockVm(mock, parameters).add_methods()


def _no_timer(_delay_sec: float, _callback: Callable[[], None]) -> NoReturn:
    raise AssertionError("the mock's guest answers at once: nothing waits for it")


def _typed(values: Mapping[str, object]) -> dict[str, object]:
    return {name: _TYPES[PROPERTIES[name]](value) for name, value in values.items()}


def _device(kind: str, name: str, details: Mapping[str, str | int | bool]) -> object:
    types = {str: dbus.String, bool: dbus.Boolean, int: dbus.UInt64}
    typed = {key: types[type(value)](value) for key, value in details.items()}
    return dbus.Struct((kind, name, dbus.Dictionary(typed, signature="sv")), signature="ssa{sv}")


def _dbus_error(error: Exception) -> Exception:
    name, text = describe(error, lambda trace: print(trace, file=sys.stderr))
    failure: Exception = dbus.exceptions.DBusException(text, name=name)
    return failure
