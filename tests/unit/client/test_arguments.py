"""The command lines of the clients: every verb of the object has one, and nonsense is refused before a bus is asked."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vmservice.cli import main
from vmservice.client.arguments import VERBS
from vmservice.client.commands import MEMBERS

XML = Path(__file__).parents[3] / "dbus/org.vmservice.VM1.xml"


def test_every_method_of_the_object_is_a_command() -> None:
    (interface,) = (node for node in ET.parse(XML).iter("interface") if node.attrib["name"] == "org.vmservice.VM1")
    assert set(MEMBERS.values()) == {node.attrib["name"] for node in interface.iter("method")}
    assert set(VERBS) == set(MEMBERS)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("status", "the following arguments are required: NAME"),
        ("pause", "the following arguments are required: NAME"),
        ("pause ../demo", "'../demo' cannot be the name of a VM"),
        ("status demo.service/x", "'demo.service/x' cannot be the name of a VM"),
        ("resize demo", "the following arguments are required: N"),
        ("resize demo two", "invalid int value: 'two'"),
        ("resize demo 0", "no VM can have 0 vCPUs; 1 to 254 are possible"),
        ("resize demo 255", "no VM can have 255 vCPUs; 1 to 254 are possible"),
        ("pause demo 2", "unrecognized arguments: 2"),
        ("wait demo", "the following arguments are required: STATE"),
        ("wait demo flying", "invalid choice: 'flying'"),
        ("wait demo running --timeout soon", "invalid float value: 'soon'"),
        ("wait demo running --timeout 0", "must be more than 0 seconds"),
        ("wait demo running --timeout=-1", "must be more than 0 seconds"),
        ("wait demo running --timeout nan", "must be more than 0 seconds"),
        ("wait demo running --timeout inf", "must be more than 0 seconds"),
        ("list demo", "unrecognized arguments: demo"),
        ("list --jsn", "unrecognized arguments: --jsn"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], words: str, sentence: str) -> None:
    assert main(words.split()) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.startswith("vmservice: ")
    assert said.err.count("\n") == 1
