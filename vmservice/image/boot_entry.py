"""One way to start the system of an image, and those that are written as the UAPI group's boot loader specification has them.

A type of file system has `text`, `names`, `size` and `copy`, as in `ext4.py`: `Files`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

ENTRIES = "loader/entries"

# An image may be made to keep its reader busy.
_ENTRIES_MAX = 200
_TEXT_MAX_LENGTH = 1 << 16
_VALUE_MAX_LENGTH = 1 << 12


class Files(Protocol):
    """A file system of an image; paths are absolute in it."""

    @property
    def kind(self) -> str: ...

    def text(self, path: str) -> str | None: ...

    def size(self, path: str) -> int | None: ...

    def names(self, path: str) -> list[str]: ...

    def copy(self, path: str, output: int) -> None: ...


@dataclass(frozen=True)
class BootEntry:
    """Paths as the boot loader has them: from the top of the file system that has the entry. `initrd` may be empty."""

    title: str
    kernel: str
    initrd: str
    options: str

    def printable(self) -> BootEntry:
        """Without what would steer a terminal: an image has whatever its maker likes."""
        return BootEntry(*(_printable(text) for text in (self.title, self.kernel, self.initrd, self.options)))


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


def read_entries(files: Files, folder: str, variables: Callable[[], dict[str, str]]) -> list[BootEntry]:
    """The entries below `folder`, `/` or `/boot`, the default one first. `variables` are grub's, for Fedora."""
    found: list[tuple[str, dict[str, str]]] = []
    for name in files.names(f"{folder}{ENTRIES}")[-_ENTRIES_MAX:]:
        text = files.text(f"{folder}{ENTRIES}/{name}") if name.endswith(".conf") else None
        keys = _read_keys(text or "")
        if "linux" in keys:
            # Behind "+" is how often it may still be tried.
            found.append((re.sub(r"\+\d+(-\d+)?$", "", name.removesuffix(".conf")), keys))
    found.sort(key=lambda one: _order(*one), reverse=True)
    settings = _read_keys(files.text(f"{folder}loader/loader.conf") or "")
    saved = variables().get("saved_entry", "")
    for pattern in (settings.get("default", "").removesuffix(".conf"), saved):
        if pattern:
            # A stable sort: what the pattern says comes first, else all stays.
            found.sort(key=lambda one: not fnmatch.fnmatchcase(one[0], pattern))
    return [_entry(name, keys, variables) for name, keys in found]


def version_key(version: str) -> list[tuple[int, int, str]]:
    """For sorting by version: numbers by value and above letters, and a "~" is older than nothing at all."""
    parts = re.findall(r"\d+|[A-Za-z]+|~", version)
    return [(2, int(part), "") if part.isdigit() else (-1, 0, "") if part == "~" else (1, 0, part) for part in parts] + [
        (0, 0, "")
    ]


def _order(name: str, keys: dict[str, str]) -> tuple[object, ...]:
    """Better ones are greater. Where one has a sort key, all with one come first."""
    sort_key = keys.get("sort-key", "")
    # The least sort key is the best.
    descending = [-ord(letter) for letter in sort_key]
    return bool(sort_key), descending, version_key(keys.get("version", "") if sort_key else name), name


def _read_keys(text: str) -> dict[str, str]:
    """Lines of a key and its value. `options` may be there several times, `initrd` too: of that, the first is taken."""
    keys: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" " if "\t" not in line.strip() else "\t")
        key, value = key.strip(), value.strip()
        if not key or key.startswith("#"):
            continue
        if key == "options" and key in keys:
            keys[key] += f" {value}"
        else:
            keys.setdefault(key, value)
    return keys


def _entry(name: str, keys: dict[str, str], variables: Callable[[], dict[str, str]]) -> BootEntry:
    options = keys.get("options", "")
    if "$" in options:
        options = substitute(options, variables())
    initrd = keys.get("initrd", "").split()
    return BootEntry(keys.get("title", name), keys["linux"], initrd[0] if initrd else "", options)


def substitute(text: str, variables: dict[str, str]) -> str:
    """The text with grub's variables in place; one that is not known is empty."""
    for _ in range(4):
        text = text[:_TEXT_MAX_LENGTH]
        replaced = re.sub(
            r"\$(?:\{(\w+)\}|(\w+))", lambda found: variables.get(found[1] or found[2], "")[:_VALUE_MAX_LENGTH], text
        )
        if replaced == text:
            break
        text = replaced
    return " ".join(text[:_TEXT_MAX_LENGTH].split())


def read_grub_environment(text: str) -> dict[str, str]:
    """grubenv: lines of name=value, and padding."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
