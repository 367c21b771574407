"""vm@.service(8) has every unit, message and journal field that there is; and the units name the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.man_page import PACKAGING, read_page, words

from vmservice.service import message_ids

CHECKOUT = Path(__file__).parents[2]
PAGE = read_page("vm@.service.8")
ALL_UNITS = sorted(path for ending in ("service", "socket") for path in (CHECKOUT / "units").rglob(f"*.{ending}"))
UNITS = [unit for unit in ALL_UNITS if "@" in unit.name]

# What says something of a VM, or of its guest's console, to the journal.
JOURNAL = ("vmservice/service/journal.py", "vmservice/host/consoles/journal.py")


def test_it_is_the_page_of_every_unit() -> None:
    named = {word for line in PAGE["NAME"].source for word in words(line.removeprefix("."), "Nm")}
    assert named == {unit.name for unit in UNITS}


def test_the_package_has_it_by_the_name_of_every_unit() -> None:
    folder = "usr/share/man/man8"
    lines = [line.split() for line in (PACKAGING / "debian/vmservice.links").read_text().splitlines()]
    links = {link: page for page, link in lines if link.startswith(folder)}
    others = {unit.name for unit in UNITS} - {"vm@.service"}
    assert links == {f"{folder}/{name}.8.gz": f"{folder}/vm@.service.8.gz" for name in others}


@pytest.mark.parametrize("unit", ALL_UNITS, ids=lambda unit: str(unit.relative_to(CHECKOUT)))
def test_a_unit_names_pages_that_there_are(unit: Path) -> None:
    pages = re.findall(r"^Documentation=(.*)$", unit.read_text(), re.MULTILINE)
    named = [f"{name}.{section}" for page in pages for name, section in re.findall(r"man:(\S+)\((\d)\)", page)]
    assert ("vm@.service.8" in named) == (unit in UNITS)
    assert named
    assert all((PACKAGING / name).is_file() for name in named)


def test_it_has_every_message() -> None:
    ids = {value for name, value in vars(message_ids).items() if name.isupper()}
    assert {item.title for item in PAGE["JOURNAL"].items if re.fullmatch("[0-9a-f]{32}", item.title)} == ids != set()


def test_it_has_every_field() -> None:
    fields = {field for file in JOURNAL for field in re.findall(r"\bVM_[A-Z_]+", (CHECKOUT / file).read_text())}
    messages = {name for name in vars(message_ids) if name.isupper()}
    said = {item.title.rstrip("=") for item in PAGE["JOURNAL"].items if item.title.startswith("VM_")}
    assert said == fields - messages


@pytest.mark.parametrize("folder", ["units", "units/user"])
def test_it_says_after_which_statuses_a_vm_is_started_again(folder: str) -> None:
    unit = (CHECKOUT / folder / "vm@.service").read_text()
    forced, never = (
        set(re.findall(rf"^{setting}=(.*)$", unit, re.MULTILINE)[0].split())
        for setting in ("RestartForceExitStatus", "RestartPreventExitStatus")
    )
    said = {item.title: set(re.findall(r"\b\d+\b", item.text)) for item in PAGE["RESTART"].items}
    assert {title for title in said if title.isdecimal()} == forced
    assert said["any other failure"] == never
