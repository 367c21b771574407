"""A VM's unit as systemd has it on this host, drop-ins included."""

from __future__ import annotations

import json
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DEFAULT_ACCOUNT = "vmservice"
_TIMEOUT_SEC = 10
_MANAGER = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"


def read_unit(name: str) -> Mapping[str, Any] | None:
    """All properties of vm@NAME.service, with the types of org.freedesktop.systemd1(5); None where there is no such unit, or no
    systemd that could be asked.

    By the bus, and not by `systemctl show`, whose text does not say where a path with a blank ends.
    """
    label = "".join(letter if letter.isalnum() else f"_{ord(letter):02x}" for letter in f"vm@{name}.service")
    words = [f"{_MANAGER_PATH}/unit/{label}", "org.freedesktop.DBus.Properties", "GetAll", "s", ""]
    line = ["busctl", "--json=short", "call", _MANAGER, *words]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SEC)
        properties = {key: value["data"] for key, value in json.loads(done.stdout)["data"][0].items()}
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError):
        return None
    return properties if properties.get("LoadState") == "loaded" else None


def account_of_unit(name: str) -> str:
    """What the VM's unit has as User=, or the one that it is shipped with where systemd does not say."""
    words = ["systemctl", "show", "--property=User", "--value", f"vm@{name}.service"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SEC)
    except (OSError, subprocess.TimeoutExpired):
        return _DEFAULT_ACCOUNT
    return done.stdout.strip() or _DEFAULT_ACCOUNT
