"""The pages of the D-Bus interfaces are equal to the XML in dbus/, the polkit actions and the table of errors."""

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


# org.vmservice.Manager1(5)

MANAGER = "org.vmservice.Manager1"
MANAGER_PAGE = read_page(f"{MANAGER}.5")


def of_the_manager(kind: str) -> list[ElementTree.Element]:
    """Members of one kind, of both objects; what every D-Bus object has is left out."""
    found = []
    for file in (MANAGER, f"{MANAGER}.VM"):
        for one in ElementTree.parse(DBUS / f"{file}.xml").findall("interface"):
            if str(one.get("name")).startswith(MANAGER) or one.get("name") == "org.freedesktop.DBus.ObjectManager":
                found += one.findall(kind)
    return found


def shown(arguments: list[ElementTree.Element]) -> str:
    return ", ".join(f"{argument.get('type')} {argument.get('name')}" for argument in arguments)


def test_the_managers_page_has_every_method_with_its_arguments() -> None:
    expected = set()
    for method in of_the_manager("method"):
        taken, given = (method.findall(f"arg[@direction='{direction}']") for direction in ("in", "out"))
        expected.add(f"{method.get('name')} ({' '.join(part for part in (shown(taken), '->', shown(given)) if part)})")
    assert {item.title for item in MANAGER_PAGE["METHODS"].items} == expected != set()


def test_the_managers_page_has_every_signal() -> None:
    """And that of properties, which every object has."""
    expected = {f"{signal.get('name')} ({shown(signal.findall('arg'))})" for signal in of_the_manager("signal")}
    assert {item.title for item in MANAGER_PAGE["SIGNALS"].items} == {*expected, "PropertiesChanged"}


def test_the_managers_page_has_every_property_with_its_type() -> None:
    said = {(name, *item.words("Li")) for item in MANAGER_PAGE["PROPERTIES"].items for name in item.words("Cm")}
    assert said == {(one.get("name"), one.get("type")) for one in of_the_manager("property")} != set()


def test_the_managers_page_has_every_error() -> None:
    text = (DBUS / f"{MANAGER}.xml").read_text()
    head = text[: text.index("<node ")]
    said = {item.title for item in MANAGER_PAGE["ERRORS"].items}
    assert said == set(re.findall(r"^    (org\.\S+\.Error\.\w+)", head, re.MULTILINE)) != set()
