"""Which device nodes a service may use: DevicePolicy= and DeviceAllow= of its unit."""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# By kind and number: proc_devices(5).
DRIVERS = "/proc/devices"

# What any policy but "strict" lets through.
_STANDARD = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_KINDS = {"Character devices:": "char", "Block devices:": "block"}


def may_use_device(unit: Mapping[str, Any], path: str, *, writes: bool) -> bool:
    """Whether what is at `path` is no device, or one that the unit may use: systemd.resource-control(5).

    So is one of which that cannot be found out.
    """
    policy = str(unit.get("DevicePolicy", "auto"))
    allowed = [(str(word), str(access)) for word, access in unit.get("DeviceAllow", ())]
    if policy == "auto" and not allowed:
        return True
    if policy != "strict":
        allowed += [(word, "rw") for word in _STANDARD]
    try:
        status = os.stat(path)
    except OSError:
        return True
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        return True
    wanted = "rw" if writes else "r"
    return any(set(wanted) <= set(access) and _is_meant(word, status) for word, access in allowed)


def _is_meant(word: str, status: os.stat_result) -> bool:
    kind = "block" if stat.S_ISBLK(status.st_mode) else "char"
    if word.startswith("/"):
        try:
            other = os.stat(word)
        except OSError:
            return False
        return (stat.S_IFMT(other.st_mode), other.st_rdev) == (stat.S_IFMT(status.st_mode), status.st_rdev)
    wanted, _, pattern = word.partition("-")
    if wanted != kind:
        return False
    drivers = _drivers(kind, os.major(status.st_rdev))
    return drivers is None or any(fnmatchcase(driver, pattern) for driver in drivers)


def _drivers(kind: str, major: int) -> list[str] | None:
    """What the kernel calls those of that number; None where it does not tell, as with ProcSubset=pid."""
    try:
        with open(DRIVERS, encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return None
    found, section = [], ""
    for line in lines:
        section = _KINDS.get(line.strip(), section)
        words = line.split()
        if section == kind and len(words) == 2 and words[0] == str(major):
            found.append(words[1])
    return found
