"""The entries of a grub.cfg, as far as programs write it: grub-mkconfig, and those of the distributions that follow it.

It is a script, of which the menu is read, assignments of plain text, and nothing else is carried out.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from vmservice.image.boot_entry import BootEntry, substitute

# A word of the script: in single quotes, in double ones, or bare, with no blank between the parts.
_WORD = re.compile(
    r"""((?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|\$\{\w+\}|[^\s'"\\;{}#]|(?<=\S)\#)+)|([;{}\n])|(\#[^\n]*)""", re.DOTALL
)
_PART = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""")
_LINUX = ("linux", "linux16", "linuxefi")
_INITRD = ("initrd", "initrd16", "initrdefi")


@dataclass
class _Item:
    """An entry or, with `items`, a menu."""

    title: str
    ids: tuple[str, ...]
    linux: list[str] = field(default_factory=list)
    initrd: list[str] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)


def read_menu(text: str, environment: dict[str, str]) -> list[BootEntry]:
    """All entries that start a Linux, the default one first. `environment` is that of grubenv."""
    variables, items = _parse(text)
    wanted = variables.get("default", "0")
    if "$" in wanted:
        wanted = substitute(wanted, {**environment, **variables})
    default = _find(items, wanted)
    entries = [one for one in _all(items) if one.linux]
    # A stable sort: the default first.
    entries.sort(key=lambda one: one is not default)
    return [_entry(one, {**environment, **variables}) for one in entries]


def _parse(text: str) -> tuple[dict[str, str], list[_Item]]:
    """Variables that are set to what is known, and the menu."""
    top = _Item("", ())
    variables: dict[str, str] = {}
    stack = [top]
    blocks: list[bool] = []  # for each open brace: whether it is an entry's
    command: list[str] = []
    for word, mark in _words(text):
        if word is not None:
            command.append(word)
            continue
        if mark == "{":
            is_entry = bool(command) and command[0] in ("menuentry", "submenu")
            blocks.append(is_entry)
            if is_entry:
                item = _Item(_plain(command[1]) if len(command) > 1 else "", _ids(command))
                stack[-1].items.append(item)
                stack.append(item)
        else:
            _run(command, stack[-1], variables)
            if mark == "}" and blocks and blocks.pop():
                stack.pop()
        command = []
    return variables, top.items


def _words(text: str) -> list[tuple[str | None, str]]:
    """Words as they are written, and the marks between commands."""
    return [(found[1], found[2] or "") for found in _WORD.finditer(text + "\n") if not found[3]]


def _run(command: list[str], item: _Item, variables: dict[str, str]) -> None:
    while command and command[0] in ("then", "else", "do"):
        command = command[1:]
    if len(command) > 1 and command[0] == "set" and not item.title:
        name, _, value = command[1].partition("=")
        value = _plain(value)
        # What follows from the state of a machine is not known here; of several the last that says something holds.
        if not _is_unknown(value) or name not in variables:
            variables[name] = value
    elif len(command) > 1 and command[0] in _LINUX and not item.linux:
        item.linux = [_plain(word) for word in command[1:]]
    elif len(command) > 1 and command[0] in _INITRD and not item.initrd:
        item.initrd = [_plain(word) for word in command[1:]]


def _is_unknown(value: str) -> bool:
    return "$" in value and "saved_entry" not in value


def _ids(command: list[str]) -> tuple[str, ...]:
    """What `--id` says, or `$menuentry_id_option`, which is the same."""
    names = ("--id", "$menuentry_id_option", "${menuentry_id_option}")
    found = [_plain(after) for before, after in itertools.pairwise(command) if before in names]
    return tuple(found + [_plain(word[5:]) for word in command if word.startswith("--id=")])


def _plain(word: str) -> str:
    """Without its quotes."""
    parts = []
    for single, double, escaped, bare in _PART.findall(word):
        parts.append(single or re.sub(r"\\(.)", r"\1", double) or escaped or bare)
    return "".join(parts)


def _find(items: list[_Item], wanted: str) -> _Item | None:
    """By index, title or id; a ">" leads into a menu. The first entry of a menu where only that is named."""
    item = None
    for step in wanted.split(">"):
        if step.isdigit():
            item = items[int(step)] if int(step) < len(items) else None
        else:
            item = next((one for one in items if step in (one.title, *one.ids)), None)
        if item is None:
            return None
        items = item.items
    while item is not None and item.items:
        item = item.items[0]
    return item


def _all(items: list[_Item]) -> list[_Item]:
    found = []
    for item in items:
        found += [item, *_all(item.items)]
    return found


def _entry(item: _Item, variables: dict[str, str]) -> BootEntry:
    kernel, *options = [substitute(word, variables) for word in item.linux]
    initrd = [substitute(word, variables) for word in item.initrd]
    return BootEntry(item.title, _path(kernel), _path(initrd[0]) if initrd else "", " ".join(one for one in options if one))


def _path(word: str) -> str:
    """Without the device, (hd0,gpt1) or what a variable was to say."""
    return re.sub(r"^\([^)]*\)", "", word)
