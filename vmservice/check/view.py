"""Which files of the host a service sees, and which it may change: systemd's sandbox, worked out from the unit's properties.

As src/core/namespace.c of systemd has it: each setting puts something at a path, the one at the deepest path holds, of two at
one path the stricter, and below what is inaccessible nothing is mounted. Permissions are not looked at here.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Final

# What is put at a path. Of two at one path the first of these holds: enum MountMode of namespace.c.
_HIDDEN, _BIND, _EMPTY, _READ_ONLY, _WRITABLE, _TMPFS, _LEFT_WRITABLE = range(7)

_HOMES = ("/home", "/root", "/run/user")
_TMP = ("/tmp", "/var/tmp")
_SYSTEM_READ_ONLY: dict[str, tuple[str, ...]] = {
    "strict": ("/",),
    "full": ("/usr", "/boot", "/efi", "/etc"),
    "yes": ("/usr", "/boot", "/efi"),
}
# What PrivateDevices= leaves of the host's own: nodes of mount_private_dev(), and what it mounts from there.
_PRIVATE_DEV_HAS = ("null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue", "hugepages")
# By setting, where systemd makes such directories.
_MADE_BELOW = {
    "RuntimeDirectory": "/run",
    "StateDirectory": "/var/lib",
    "CacheDirectory": "/var/cache",
    "LogsDirectory": "/var/log",
}

_LINKS_MAX = 40  # MAXSYMLINKS of the kernel


class Sight:
    """How the service sees one path.

    `host` is what that is on the host; empty for a directory that is the service's own and empty at its start. `base` is the
    directory of the host whose parents do not matter: the source of a bind mount, or "/". `parents` are directories, each with
    its base, that a lookup comes through before. `hidden` and `read_only` are the setting that makes it so, empty without one.
    """

    __slots__ = ("base", "hidden", "host", "parents", "path", "read_only")

    def __init__(self, path: str) -> None:
        self.path = path
        self.host = path
        self.base = "/"
        self.parents: list[tuple[str, str]] = []
        self.hidden = ""
        self.read_only = ""


class _Entry:
    __slots__ = ("kind", "path", "read_only", "setting", "source")

    def __init__(self, kind: int, path: str, setting: str, *, source: str = "", read_only: bool = False) -> None:
        """`path` as the setting has it, until the view has followed it. A source is the host's, whatever is mounted."""
        self.kind: Final = kind
        self.path = os.path.normpath(path)
        self.setting: Final = setting
        self.source: Final = os.path.realpath(source) if source else ""
        self.read_only: Final = read_only


class View:
    """What a service sees. `made` are the directories that systemd makes for it, and hands over to its account."""

    def __init__(self, entries: Sequence[_Entry] = (), made: Sequence[str] = ()) -> None:
        """Mounted as apply_mounts() of namespace.c does it: in the order of the paths, which each link followed changes,
        and each at what it leads to among those mounted before. So udev's links are none in a /dev of the service's own."""
        self.made = tuple(made)
        self._entries: list[_Entry] = []
        by_path: dict[str, _Entry] = {}
        left = [(entry, _LINKS_MAX) for entry in entries]
        while left:
            left.sort(key=lambda item: (_parts(item[0].path), item[0].kind))
            entry, steps_left = left.pop(0)
            met, further = self._step(entry.path)
            if further and steps_left:
                entry.path = further
                left.append((entry, steps_left - 1))
                continue
            if met is not None:
                entry.path = met.path
            held = by_path.get(entry.path)
            if held is None or entry.kind < held.kind:
                by_path[entry.path] = entry
                self._entries = sorted(by_path.values(), key=lambda entry: len(entry.path))

    def look(self, path: str) -> Sight:
        """`path` is absolute, and what it leads to: no part of it is a link."""
        sight = Sight(path)
        for entry in self._entries:
            if not is_below(path, entry.path):
                continue
            if entry.kind == _HIDDEN:
                sight.hidden, sight.read_only = entry.setting, ""
                return sight
            if entry.kind in (_BIND, _EMPTY, _TMPFS) and sight.host:
                place = sight.host.removesuffix(path[len(entry.path) :])
                sight.parents.append((os.path.dirname(place), sight.base))
            if entry.kind == _BIND:
                sight.host = _joined(entry.source, path[len(entry.path) :])
                sight.base, sight.hidden = entry.source, ""
                sight.read_only = entry.setting if entry.read_only else ""
            elif entry.kind in (_EMPTY, _TMPFS):
                sight.host, sight.base = "", "/"
                sight.hidden = "" if path == entry.path else entry.setting
                sight.read_only = entry.setting if entry.read_only else ""
            else:
                sight.read_only = entry.setting if entry.kind == _READ_ONLY else ""
        if sight.hidden and any(entry.kind == _BIND and is_below(entry.path, path) for entry in self._entries):
            # In an empty directory: made on the way to what is mounted there.
            sight.hidden, sight.read_only = "", sight.hidden
        return sight

    def follow(self, path: str) -> list[Sight]:
        """What a lookup of `path` meets: each symbolic link, and at the end what it leads to, though that may be hidden, or not
        there."""
        met: list[Sight] = []
        further = path
        while further and len(met) <= _LINKS_MAX:
            sight, further = self._step(further)
            if sight is not None:
                met.append(sight)
        return met

    def _step(self, path: str) -> tuple[Sight | None, str]:
        """The first symbolic link of `path`, or None for `..`, and the path from there on; or what is at the end, and "". Of
        what is hidden nothing is followed."""
        place, parts = "/", _parts(path)
        for number, name in enumerate(parts, 1):
            rest = "/".join(parts[number:])
            if name == "..":
                return None, os.path.join(os.path.dirname(place), rest)
            sight = self.look(os.path.join(place, name))
            if sight.hidden:
                sight.path = os.path.normpath(os.path.join(sight.path, rest))
                return sight, ""
            target = _link(sight.host)
            if target is not None:
                return sight, os.path.join(place, target, rest)
            place = sight.path
        return self.look(place), ""


def is_below(path: str, folder: str) -> bool:
    """Whether it is `folder` itself, or in it."""
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


def view_of_unit(unit: Mapping[str, Any]) -> View:
    """`unit` as `read_unit` gives it."""
    made = [f"{folder}/{name}" for setting, folder in _MADE_BELOW.items() for name in unit.get(setting, ())]
    return View([*_entries(unit, made)], made)


def _entries(unit: Mapping[str, Any], made: Sequence[str]) -> Iterator[_Entry]:
    yield from _of_protect(unit)
    if unit.get("PrivateDevices"):
        yield _Entry(_EMPTY, "/dev", "PrivateDevices=yes", read_only=True)
        for name in _PRIVATE_DEV_HAS:
            yield _Entry(_BIND, f"/dev/{name}", "PrivateDevices=yes", source=f"/dev/{name}")
    for setting in ("BindPaths", "BindReadOnlyPaths"):
        for source, target, may_be_missing, _flags in unit.get(setting, ()):
            if not may_be_missing or os.path.exists(source):
                is_read_only = setting == "BindReadOnlyPaths"
                yield _Entry(_BIND, target, f"{setting}={target}", source=source, read_only=is_read_only)
    for target, options in unit.get("TemporaryFileSystem", ()):
        # Root's, so that without "ro" too the account makes nothing in it.
        is_open = "mode=1777" in options.split(",")
        yield _Entry(_TMPFS, target, f"TemporaryFileSystem={target}", read_only=not is_open or "ro" in options.split(","))
    for setting, kind in (("InaccessiblePaths", _HIDDEN), ("ReadOnlyPaths", _READ_ONLY), ("ReadWritePaths", _WRITABLE)):
        for word in unit.get(setting, ()):
            path = word.lstrip("-+")
            yield _Entry(kind, path, f"{setting}={path}")
    for path in made:
        yield _Entry(_WRITABLE, path, "")


def _of_protect(unit: Mapping[str, Any]) -> Iterator[_Entry]:
    system = str(unit.get("ProtectSystem", "no"))
    for path in _SYSTEM_READ_ONLY.get(system, ()):
        yield _Entry(_READ_ONLY, path, f"ProtectSystem={system}")
    if system == "strict":
        for path in ("/dev", "/proc", "/sys", *_HOMES):
            yield _Entry(_LEFT_WRITABLE, path, "")
    home = str(unit.get("ProtectHome", "no"))
    kind = {"yes": _HIDDEN, "read-only": _READ_ONLY, "tmpfs": _TMPFS}.get(home)
    if kind is not None:
        for path in _HOMES:
            yield _Entry(kind, path, f"ProtectHome={home}", read_only=True)
    if unit.get("PrivateTmp"):
        for path in _TMP:
            yield _Entry(_EMPTY, path, "PrivateTmp=yes")


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _joined(folder: str, rest: str) -> str:
    return rest if folder == "/" and rest else folder + rest


def _link(host: str) -> str | None:
    """Where the symbolic link leads; None for what is none, or cannot be looked at."""
    if not host:
        return None
    try:
        return os.readlink(host)
    except OSError:
        return None
