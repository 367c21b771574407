"""The XML is the source of truth: it is served, it is what is exported, and it is the contract."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.bus_client import client, served_vm
from support.private_bus import PrivateBus

from vmservice.control import introspection
from vmservice.control.api import PROPERTIES, VERBS
from vmservice.control.dbus_object import METHODS
from vmservice.control.names import INTERFACE, INTROSPECTION_FILE, OBJECT_PATH
from vmservice.vm.vm import Vm

XML = Path(__file__).parents[2] / "dbus" / INTROSPECTION_FILE
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"

# The public contract, member for member.
CONTRACT_PROPERTIES = {
    "State": ("s", "true"),
    "Name": ("s", "const"),
    "VCPUs": ("y", "true"),
    "MaxVCPUs": ("y", "const"),
    "Memory": ("t", "true"),
    "LastExit": ("s", "true"),
    "GuestReady": ("b", "true"),
    "Devices": ("a(ssa{sv})", "true"),
    "Stats": ("a{sd}", "false"),
}
CONTRACT_METHODS = {
    "Boot": [],
    "Pause": [],
    "Resume": [],
    "Shutdown": [],
    "Resize": [("desired_vcpus", "y", "in")],
    "PowerButton": [],
    "Reboot": [],
}


def interfaces(xml: str) -> dict[str, ET.Element]:
    return {node.attrib["name"]: node for node in ET.fromstring(xml).iter("interface")}


def methods_of(interface: ET.Element) -> dict[str, list[tuple[str, str, str]]]:
    return {
        method.attrib["name"]: [(a.get("name", ""), a.attrib["type"], a.attrib["direction"]) for a in method.iter("arg")]
        for method in interface.iter("method")
    }


def test_the_xml_is_the_contract() -> None:
    interface = interfaces(XML.read_text("utf-8"))[INTERFACE]
    properties = {}
    for node in interface.iter("property"):
        notes = {note.attrib["name"]: note.attrib["value"] for note in node.iter("annotation")}
        properties[node.attrib["name"]] = (node.attrib["type"], notes[EMITS])
        assert node.attrib["access"] == "read"
    assert properties == CONTRACT_PROPERTIES
    assert methods_of(interface) == CONTRACT_METHODS
    assert interface.find("signal") is None


def test_the_table_of_verbs_is_the_xmls_and_each_is_a_method_of_the_vm() -> None:
    methods = methods_of(interfaces(XML.read_text("utf-8"))[INTERFACE])
    assert {verb.member: verb.signature for verb in VERBS} == {
        name: "".join(kind for _, kind, _ in args) for name, args in methods.items()
    }
    assert len({verb.member for verb in VERBS}) == len({verb.action for verb in VERBS}) == len(VERBS)
    assert all(callable(getattr(Vm, verb.method)) for verb in VERBS)


def test_the_xml_is_what_is_exported() -> None:
    found = interfaces(XML.read_text("utf-8"))
    assert set(found) == set(METHODS)
    for name, interface in found.items():
        signatures = {
            method: "".join(kind for _, kind, direction in args if direction == "in")
            for method, args in methods_of(interface).items()
        }
        assert signatures == METHODS[name]
    assert {node.attrib["name"]: node.attrib["type"] for node in found[INTERFACE].iter("property")} == PROPERTIES


def test_the_table_of_properties_is_the_vms() -> None:
    def never() -> object:
        raise AssertionError

    vm = Vm(name="demo", vcpus=1, max_vcpus=1, memory_bytes=0, build=never, call_later=never)  # type: ignore[arg-type]
    assert {*vm.properties(), "Stats"} == set(PROPERTIES)


def test_introspect_answers_the_file(bus: PrivateBus) -> None:
    async def check() -> None:
        async with served_vm(bus.address), client(bus.address) as caller:
            assert await caller.call("demo", "Introspect", interface=INTROSPECTABLE) == XML.read_text("utf-8")
            path = "/"
            while path != OBJECT_PATH:
                node = ET.fromstring(await caller.call("demo", "Introspect", interface=INTROSPECTABLE, path=path))
                (child,) = node.findall("node")
                path = os.path.join(path, child.attrib["name"])

    asyncio.run(check())


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    folders = introspection.search_path()
    assert folders[0] == str(XML.parent)
    assert folders[1:] == (
        f"{tmp_path}/share/dbus-1/interfaces",
        "/usr/local/share/dbus-1/interfaces",
        "/usr/share/dbus-1/interfaces",
    )
    here = tmp_path / "share/dbus-1/interfaces"
    here.mkdir(parents=True)
    (here / INTROSPECTION_FILE).write_text("<node/>")
    assert introspection.installed_xml(folders[1:]) == "<node/>"
    (here / INTROSPECTION_FILE).write_bytes(b"\xff\xfe not text")
    assert introspection.installed_xml([str(here), str(tmp_path / "none")]) is None


def test_without_the_file_the_members_are_still_told() -> None:
    found = interfaces(introspection.generated_xml(METHODS, {INTERFACE: PROPERTIES}))
    assert set(found) == set(METHODS)
    assert {node.attrib["name"]: node.attrib["type"] for node in found[INTERFACE].iter("property")} == PROPERTIES
    assert [args for name, args in methods_of(found[INTERFACE]).items() if name == "Resize"] == [[("", "y", "in")]]


@pytest.mark.parametrize("name", [INTROSPECTION_FILE, "org.vmservice.VM1.conf"])
def test_xmllint(name: str) -> None:
    if shutil.which("xmllint") is None:
        pytest.skip("xmllint is not installed")
    result = subprocess.run(["xmllint", "--noout", XML.parent / name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_busctl(bus: PrivateBus) -> None:
    """What people will type."""
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")

    async def busctl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "busctl", f"--address={bus.address}", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 20)
        return output.decode() + errors.decode()

    async def check() -> None:
        name = "org.vmservice.VM1.demo"
        async with served_vm(bus.address):
            assert await busctl("call", name, OBJECT_PATH, INTERFACE, "Boot") == ""
            assert await busctl("call", name, OBJECT_PATH, INTERFACE, "Resize", "y", "4") == ""
            assert await busctl("get-property", name, OBJECT_PATH, INTERFACE, "State") == 's "running"\n'
            assert await busctl("get-property", name, OBJECT_PATH, INTERFACE, "VCPUs") == "y 4\n"
            table = {line.split()[0]: line.split()[1:] for line in (await busctl("introspect", name, OBJECT_PATH)).splitlines()}
            assert table[".State"] == ["property", "s", '"running"', "emits-change"]
            assert table[".MaxVCPUs"] == ["property", "y", "4", "const"]
            assert table[".Resize"] == ["method", "y", "-", "-"]
            assert OBJECT_PATH in await busctl("tree", name)
            refused = await busctl("call", name, OBJECT_PATH, INTERFACE, "Resume")
            assert "demo is already running" in refused

    asyncio.run(check())
