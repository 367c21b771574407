"""The python-dbusmock template, loaded as dbusmock does it, with as much of dbusmock as it uses: its members are those of the
XML, and it behaves by the table of states. tests/control/test_dbusmock.py runs it in dbusmock itself."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from vmservice.vm.state import TRANSITIONS, State

CHECKOUT = Path(__file__).parents[3]
TEMPLATE = CHECKOUT / "vmservice/client/dbusmock_template.py"
XML = CHECKOUT / "dbus/org.vmservice.VM1.xml"
VM = "org.vmservice.VM1"
MOCK = "org.freedesktop.DBus.Mock"

# D-Bus type → what dbus-python calls it.
PYTHON_TYPES = {"s": "String", "b": "Boolean", "y": "Byte", "t": "UInt64", "a(ssa{sv})": "Array", "a{sd}": "Dictionary"}


class DBusException(Exception):
    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def fake_dbus() -> types.ModuleType:
    module: Any = types.ModuleType("dbus")
    module.String = type("String", (str,), {})
    module.Byte = type("Byte", (int,), {})
    module.UInt64 = type("UInt64", (int,), {})
    module.Boolean = type("Boolean", (int,), {})
    module.Array, module.Dictionary, module.Struct = Array, Dictionary, Struct
    module.exceptions = types.SimpleNamespace(DBusException=DBusException)
    return module  # type: ignore[no-any-return]


class Array(list[Any]):
    def __init__(self, items: Iterable[Any], signature: str) -> None:
        super().__init__(items)
        self.signature = signature


class Dictionary(dict[str, Any]):
    def __init__(self, items: Mapping[str, Any], signature: str) -> None:
        super().__init__(items)
        self.signature = signature


class Struct(tuple[Any, ...]):
    __slots__ = ()

    def __new__(cls, items: Iterable[Any], signature: str) -> Struct:
        return super().__new__(cls, items)


class FakeMock:
    """dbusmock's DBusMockObject, as far as a template sees it."""

    def __init__(self) -> None:
        self.props: dict[str, Any] = {}
        self.methods: dict[tuple[str, str], tuple[str, str, Callable[..., object]]] = {}
        self.changes: list[dict[str, Any]] = []

    def AddProperties(self, interface: str, properties: Mapping[str, Any]) -> None:  # noqa: N802
        assert interface == VM
        self.props.update(properties)

    def UpdateProperties(self, interface: str, properties: Mapping[str, Any]) -> None:  # noqa: N802
        assert interface == VM
        assert properties.keys() <= self.props.keys()
        self.props.update(properties)
        self.changes.append(dict(properties))

    def AddMethod(self, interface: str, name: str, takes: str, gives: str, code: Callable[..., object]) -> None:  # noqa: N802
        assert isinstance(code, types.FunctionType)  # what dbusmock takes for code, other than text
        self.methods[interface, name] = (takes, gives, code)

    def call(self, name: str, *arguments: object, interface: str = VM) -> object:
        return self.methods[interface, name][2](self, *arguments)


Load = Callable[..., FakeMock]


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "dbus", fake_dbus())
    monkeypatch.setattr(sys, "path", list(sys.path))
    return run_template()


def run_template() -> Any:
    spec = importlib.util.spec_from_file_location(TEMPLATE.stem, TEMPLATE)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(TEMPLATE.read_text("utf-8"), module.__dict__, module.__dict__)
    return module


@pytest.fixture
def load(template: Any) -> Load:
    def load(**parameters: object) -> FakeMock:
        mock = FakeMock()
        template.load(mock, parameters)
        return mock

    return load


def refusal(mock: FakeMock, name: str, *arguments: object, interface: str = VM) -> tuple[str, str]:
    before, changes = dict(mock.props), len(mock.changes)
    with pytest.raises(DBusException) as raised:
        mock.call(name, *arguments, interface=interface)
    assert (mock.props, len(mock.changes)) == (before, changes)
    return raised.value.name.removeprefix(f"{VM}.Error."), str(raised.value)


def test_it_is_where_a_vm_is(template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (template.BUS_NAME, template.MAIN_OBJ, template.MAIN_IFACE)
    assert found == ("org.vmservice.VM1.demo", "/org/vmservice/VM1", "org.vmservice.VM1")
    monkeypatch.setenv("VMSERVICE_MOCK_NAME", "web-1")
    other = run_template()
    name = other.BUS_NAME
    assert name == "org.vmservice.VM1.web_2d1"
    mock = FakeMock()
    other.load(mock, {})
    assert mock.props["Name"] == "web-1"


def test_its_members_are_those_of_the_xml(load: Load) -> None:
    (interface,) = (node for node in ET.parse(XML).iter("interface") if node.attrib["name"] == VM)
    mock = load()
    assert {name: type(value).__name__ for name, value in mock.props.items()} == {
        node.attrib["name"]: PYTHON_TYPES[node.attrib["type"]] for node in interface.iter("property")
    }
    signatures = {name: (takes, gives) for (on, name), (takes, gives, _) in mock.methods.items() if on == VM}
    assert signatures == {
        node.attrib["name"]: tuple(
            "".join(arg.attrib["type"] for arg in node.iter("arg") if arg.attrib["direction"] == direction)
            for direction in ("in", "out")
        )
        for node in interface.iter("method")
    }


@pytest.mark.parametrize(("state", "wanted"), list(itertools.product(TRANSITIONS, TRANSITIONS)))
def test_it_moves_by_the_table(load: Load, state: str, wanted: str) -> None:
    verb = {State.RUNNING: "Resume" if state == State.PAUSED else "Boot", State.PAUSED: "Pause", State.SHUTDOWN: "Shutdown"}
    mock = load(State=state)
    assert (mock.props["State"], mock.changes) == (state, [])
    if wanted not in verb:
        return  # no verb leads back to created
    if wanted in TRANSITIONS[state]:
        mock.call(verb[wanted])
        assert mock.props["State"] == wanted
        assert mock.changes[-1]["State"] == wanted
    else:
        name, text = refusal(mock, verb[wanted])
        assert name == "InvalidStateTransition"
        assert state in text
        assert wanted in text


def test_the_size_follows_resize(load: Load) -> None:
    mock = load(VCPUs=2, MaxVCPUs=3, Memory=1 << 20)
    assert (mock.props["VCPUs"], mock.props["MaxVCPUs"], mock.props["Memory"]) == (2, 3, 1 << 20)
    mock.call("Resize", 3)
    assert mock.changes == [{"VCPUs": 3}]
    assert type(mock.changes[0]["VCPUs"]).__name__ == "Byte"
    assert refusal(mock, "Resize", 4) == ("InvalidArgument", "Resize to 4 vCPUs is out of range; this VM takes 1 to 3")


def test_the_guest_acts_when_the_test_says_so(load: Load) -> None:
    mock = load()
    mock.call("PowerButton")
    assert mock.changes == []
    mock.call("GuestStops", "poweroff", interface=MOCK)
    assert mock.changes == [{"State": "shutdown", "LastExit": "poweroff", "GuestReady": False}]
    mock.call("Boot")
    mock.call("GuestStops", "reset", interface=MOCK)
    assert (mock.props["State"], mock.props["LastExit"]) == ("running", "reset")
    mock.call("Pause")
    mock.call("GuestStops", "error", interface=MOCK)
    assert mock.props["State"] == "paused"
    mock.call("Resume")
    assert (mock.props["State"], mock.props["LastExit"]) == ("shutdown", "error")


def test_a_call_can_be_made_to_fail_once(load: Load) -> None:
    mock = load()
    mock.call("FailNextCall", f"{VM}.Error.Busy", "later, please", interface=MOCK)
    assert refusal(mock, "Pause") == ("Busy", "later, please")
    mock.call("Pause")
    assert mock.props["State"] == "paused"


@pytest.mark.parametrize("how", ["sleep", "vcpus", ""])
def test_a_guest_does_only_what_guests_do(load: Load, how: str) -> None:
    name, text = refusal(load(), "GuestStops", how, interface=MOCK)
    assert name == "InvalidArgument"
    assert "poweroff, reset, panic, watchdog, error" in text


def test_a_state_that_is_none(load: Load) -> None:
    with pytest.raises(DBusException, match='"flying"'):
        load(State="flying")
