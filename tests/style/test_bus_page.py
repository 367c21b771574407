"""org.vmservice.VM1(5) is equal to dbus/org.vmservice.VM1.xml, the polkit actions and the table of errors."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from support.man_page import Item, read_page

from vmservice.control.api import VERBS
from vmservice.control.errors import ACCESS_DENIED, ERROR_NAMES, FAILED, INTERACTION_REQUIRED, LIMITS_EXCEEDED

DBUS = Path(__file__).parents[2] / "dbus"
INTERFACE = "org.vmservice.VM1"
PAGE = read_page(f"{INTERFACE}.5")

EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"
# The annotation's value → what the page calls it.
TOLD = {"true": "signalled", "const": "constant", "false": "read it"}


def interface() -> ElementTree.Element:
    found = ElementTree.parse(DBUS / f"{INTERFACE}.xml").find(f"interface[@name='{INTERFACE}']")
    assert found is not None
    return found


def documented(section: str) -> dict[str, Item]:
    return {item.words("Cm")[0]: item for item in PAGE[section].items}


def test_it_has_every_property_with_its_type_and_how_changes_are_told() -> None:
    expected = {}
    for one in interface().findall("property"):
        assert one.get("access") == "read"
        annotation = one.find(f"annotation[@name='{EMITS_CHANGED}']")
        assert annotation is not None
        expected[one.get("name")] = f"{one.get('name')} ({one.get('type')}, {TOLD[annotation.get('value', '')]})"
    assert {name: item.title for name, item in documented("PROPERTIES").items()} == expected != {}


def test_it_has_every_method_with_its_arguments() -> None:
    """None of them returns anything."""
    expected = {}
    for method in interface().findall("method"):
        arguments = method.findall("arg")
        assert all(argument.get("direction") == "in" for argument in arguments)
        shown = ", ".join(f"{argument.get('type')} {argument.get('name')}" for argument in arguments)
        expected[method.get("name")] = f"{method.get('name')}({shown})"
    assert {name: item.title for name, item in documented("METHODS").items()} == expected != {}


def test_the_interface_has_no_signals_of_its_own() -> None:
    """The page would have to say so."""
    assert interface().findall("signal") == []


def test_it_has_the_action_of_every_method() -> None:
    policy = {action.get("id") for action in ElementTree.parse(DBUS / "org.vmservice.vm1.policy").iter("action")}
    said = {name: re.findall(r"Action (\S+)\.(?: |$)", item.text) for name, item in documented("METHODS").items()}
    assert said == {verb.member: [verb.action] for verb in VERBS}
    assert {action for actions in said.values() for action in actions} == policy


def test_it_has_every_error() -> None:
    said = {item.title for item in PAGE["ERRORS"].items}
    assert said == {*ERROR_NAMES.values(), FAILED, ACCESS_DENIED, INTERACTION_REQUIRED, LIMITS_EXCEEDED}


def test_the_xml_has_every_error() -> None:
    """In the comment at its beginning."""
    text = (DBUS / f"{INTERFACE}.xml").read_text()
    head = text[: text.index("<node ")]
    assert set(re.findall(r"^    (org\.\S+\.Error\.\w+)", head, re.MULTILINE)) == {item.title for item in PAGE["ERRORS"].items}


def test_it_says_every_state_and_reason() -> None:
    from vmservice.vm.state import EXIT_TEXTS, TRANSITIONS

    properties = documented("PROPERTIES")
    for word in TRANSITIONS:
        assert re.search(rf"\b{word}\b", properties["State"].text), word
    for word in EXIT_TEXTS:
        assert re.search(rf"\b{word or 'empty'}\b", properties["LastExit"].text), word
