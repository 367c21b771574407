"""The accounts and groups that this host's own files name: passwd(5), group(5).

The name service is not asked: it may wait for a server.
"""

from __future__ import annotations

import os

ACCOUNT_FILE = "/etc/passwd"
GROUP_FILE = "/etc/group"

_FILE_LIMIT_BYTES = 1 << 20


def account(uid: int) -> tuple[str, str] | None:
    """(name, gid as text) of the account `uid`, None where the file has none; OSError if it cannot be read."""
    entry = _entry(ACCOUNT_FILE, 2, str(uid), fields=7)
    return None if entry is None else (entry[0], entry[3])


def own_name() -> str:
    """The account of this process, as a sentence has it: `the account ada`."""
    uid = os.geteuid()
    try:
        found = account(uid)
    except OSError:
        found = None
    return f"the account {found[0] if found is not None else f'with the number {uid}'}"


def group(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(gid as text, names of its members) of the group `name`; else as `account`."""
    entry = _entry(GROUP_FILE, 0, name, fields=4)
    return None if entry is None else (entry[2], tuple(entry[3].split(",")))


def _entry(path: str, key: int, value: str, *, fields: int) -> list[str] | None:
    """The first line of the file whose field number `key` is `value`."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(_FILE_LIMIT_BYTES).splitlines()
    except FileNotFoundError:
        return None
    entries = (line.split(":") for line in lines)
    return next((entry for entry in entries if len(entry) == fields and entry[key] == value and entry[0]), None)
