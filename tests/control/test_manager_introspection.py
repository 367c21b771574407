"""The XML of all interfaces: names of arguments, annotations, words for each member; the manager's is what is served."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.managed import desktop, managing
from support.private_bus import PrivateBus

from vmservice.manager.model import PROPERTIES
from vmservice.manager.names import INTERFACE, OBJECT_PATH, VM_INTERFACE, VMS_PATH, vm_path
from vmservice.manager.objects import MANAGER_METHODS, MANAGER_PROPERTIES, VM_METHODS

FOLDER = Path(__file__).parents[2] / "dbus"
FILES = sorted(path.name for path in FOLDER.glob("*.xml"))
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
OURS = "org.vmservice."


def read(name: str) -> ET.Element:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    return ET.fromstring((FOLDER / name).read_text("utf-8"), parser)


def interfaces(name: str) -> dict[str, ET.Element]:
    return {node.attrib["name"]: node for node in read(name).iter("interface")}


def test_these_are_all() -> None:
    assert FILES == ["org.vmservice.Manager1.VM.xml", "org.vmservice.Manager1.xml", "org.vmservice.VM1.xml"]


@pytest.mark.parametrize("name", FILES)
def test_each_argument_has_a_name_and_a_direction(name: str) -> None:
    for member in [*read(name).iter("method"), *read(name).iter("signal")]:
        names = [arg.attrib["name"] for arg in member.iter("arg")]
        assert all(names)
        assert len(names) == len(set(names))
        assert all("direction" in arg.attrib for arg in member.iter("arg")) or member.tag == "signal"


@pytest.mark.parametrize("name", FILES)
def test_each_property_says_whether_its_changes_are_told(name: str) -> None:
    for node in read(name).iter("property"):
        notes = {note.attrib["name"]: note.attrib["value"] for note in node.iter("annotation")}
        assert notes[EMITS] in ("true", "false", "const")
        assert node.attrib["access"] == "read"


@pytest.mark.parametrize("name", FILES)
def test_each_member_of_ours_has_a_comment_in_front(name: str) -> None:
    own = [interface for key, interface in interfaces(name).items() if key.startswith(OURS)]
    assert len(own) == 1
    children = list(own[0])
    members = [(index, child) for index, child in enumerate(children) if child.tag in ("method", "signal", "property")]
    assert len(members) > 2
    for index, member in members:
        assert children[index - 1].tag is ET.Comment, member.attrib["name"]  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("interface", "methods", "properties"),
    [(INTERFACE, MANAGER_METHODS, MANAGER_PROPERTIES), (VM_INTERFACE, VM_METHODS, PROPERTIES)],
)
def test_the_xml_is_what_is_exported(interface: str, methods: dict[str, dict[str, str]], properties: dict[str, str]) -> None:
    found = interfaces(f"{interface}.xml")
    assert {
        name: {
            method.attrib["name"]: "".join(arg.attrib["type"] for arg in method.iter("arg") if arg.attrib["direction"] == "in")
            for method in node.iter("method")
        }
        for name, node in found.items()
    } == methods
    assert {node.attrib["name"]: node.attrib["type"] for node in found[interface].iter("property")} == properties


def test_introspect_answers_the_files_and_leads_to_each_vm(bus: PrivateBus, tmp_path: Path) -> None:
    for name in ("demo", "web-1"):
        (tmp_path / f"{name}.toml").touch()

    async def check() -> None:
        async with managing(bus.address, tmp_path), desktop(bus.address) as seen:

            async def xml(path: str) -> str:
                return str(await seen.call("Introspect", path=path, interface=INTROSPECTABLE))

            assert await xml(OBJECT_PATH) == (FOLDER / f"{INTERFACE}.xml").read_text("utf-8")
            assert await xml(vm_path("web-1")) == (FOLDER / f"{VM_INTERFACE}.xml").read_text("utf-8")
            todo, seen_paths = ["/"], set()
            while todo:
                path = todo.pop()
                seen_paths.add(path)
                children = [node.attrib["name"] for node in ET.fromstring(await xml(path)).findall("node")]
                todo += [f"{path.rstrip('/')}/{child}" for child in children]
            above = {"/", "/org", "/org/vmservice", OBJECT_PATH, VMS_PATH}
            assert seen_paths == above | {vm_path("demo"), vm_path("web-1")}

    asyncio.run(check())
