"""vmservice(1) is equal to the parser of the command line: commands, their options, what they are given."""

from __future__ import annotations

import argparse
import re

import pytest
from support.man_page import Item, read_page, words

from vmservice.cli import _parser

PAGE = read_page("vmservice.1")
PARSER = _parser()[0]
COMMON = {"--user", "--json", "--no-ask-password", "--help", "--version"}


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and "--help" not in action.option_strings]


def synopsis(command: str) -> list[str]:
    """The lines of one command. Several that are alike share them."""
    entries: list[list[str]] = []
    for line in PAGE["SYNOPSIS"].source:
        if line == ".Nm":
            entries.append([])
        else:
            entries[-1].append(line)
    (found,) = (entry for entry in entries if command in words(entry[0].removeprefix("."), "Cm"))
    return found[1:]


def flags(line: str) -> list[str]:
    return [f"-{word}" for word in words(line.removeprefix("."), "Fl")]


def described(command: str) -> Item:
    (found,) = (item for item in PAGE["COMMANDS"].items if command in item.words("Cm"))
    return found


def names_in(lines: list[str]) -> set[str]:
    return {name for line in lines for word in words(line.removeprefix("."), "Ar") for name in re.findall(r"[A-Z]+", word)}


def test_it_has_every_command_and_no_other() -> None:
    in_synopsis = [
        word for line in PAGE["SYNOPSIS"].source for word in words(line.removeprefix("."), "Cm") if line.startswith(".Cm")
    ]
    assert sorted(in_synopsis) == sorted(commands())
    assert sorted(word for item in PAGE["COMMANDS"].items for word in item.words("Cm")) == sorted(commands())


@pytest.mark.parametrize("command", sorted(commands()))
def test_its_synopsis_has_every_option_and_no_other(command: str) -> None:
    said = {flag for line in synopsis(command) for flag in flags(line)}
    known = options(commands()[command])
    for option in known:
        assert said & set(option.option_strings), f"{option.option_strings} of {command} is missing"
    assert said <= {string for option in known for string in option.option_strings}


@pytest.mark.parametrize("command", sorted(commands()))
def test_its_synopsis_says_which_options_take_a_value(command: str) -> None:
    takes_value = {string: option.nargs != 0 for option in options(commands()[command]) for string in option.option_strings}
    for line in synopsis(command):
        for flag, value in re.findall(r"Fl (\S+)( (?:Ar|Cm) )?", line):
            assert bool(value) == takes_value[f"-{flag}"], line


@pytest.mark.parametrize("command", sorted(commands()))
def test_its_synopsis_has_what_a_command_is_given(command: str) -> None:
    given = {
        name
        for action in commands()[command]._actions
        if not action.option_strings
        for name in re.findall(r"[A-Z]+", str(action.metavar))
    }
    assert names_in([line for line in synopsis(command) if not flags(line)]) == given
    assert names_in([f".It {described(command).head}"]) >= given


@pytest.mark.parametrize("command", sorted(commands()))
def test_it_describes_every_option(command: str) -> None:
    """In the list below the command, or in its text; those that many commands have in a section of their own."""
    item = described(command)
    text = " ".join([item.title, item.text, *(inner.title for inner in item.items)])
    for option in options(commands()[command]):
        if not COMMON & set(option.option_strings):
            assert any(re.search(rf"(?<!\S){string}\b", text) for string in option.option_strings), option.option_strings
    known = {
        string for command in item.words("Cm") for option in options(commands()[command]) for string in option.option_strings
    }
    assert {flag for inner in item.items for flag in flags(f".It {inner.head}")} <= known


def test_it_describes_the_options_of_many_commands() -> None:
    items = {flag: item for item in PAGE["OPTIONS"].items for flag in flags(f".It {item.head}")}
    assert set(items) == {string for action in PARSER._actions for string in action.option_strings}
    with_json = {name for name, parser in commands().items() for option in options(parser) if "--json" in option.option_strings}
    assert set(re.findall(r"[a-z-]+", items["--json"].text.partition(": ")[2])) == with_json


def test_its_exit_statuses_are_of_commands() -> None:
    general, single = PAGE["EXIT STATUS"].items, []
    for item in general:
        single += item.words("Cm")
    assert {item.head for item in general if not item.words("Cm")} >= {
        "0",
        "1",
        "64",
        "69",
        "70",
        "71",
        "75",
        "77",
        "78",
        "130",
    }
    assert set(single) <= set(commands())
    assert len(single) == len(set(single))
