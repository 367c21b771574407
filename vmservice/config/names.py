"""What a VM may be called, and where its configuration belongs."""

from __future__ import annotations

import os
from itertools import groupby

from vmservice.errors import UsageError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.config.reader import TableReader

NAME_MAX_LENGTH = 64
NAME_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
NAME_REST = NAME_FIRST | frozenset("_.-")

SYSTEM_DIRECTORY = "/etc/vmservice"
_SUFFIX = ".toml"
DROP_INS_SUFFIX = ".toml.d"


def check_name(name: str) -> None:
    """UsageError unless `name` may be the NAME of a VM."""
    if not is_name(name):
        raise UsageError(
            f"{quoted(name, 2 * NAME_MAX_LENGTH)} cannot be the name of a VM; "
            f"it must be 1 to {NAME_MAX_LENGTH} of A-Z a-z 0-9 _ . - and begin with a letter or digit"
        )


def is_name(name: str) -> bool:
    """Whether a VM, or a device of one, may be called so."""
    return 0 < len(name) <= NAME_MAX_LENGTH and name[0] in NAME_FIRST and NAME_REST.issuperset(name)


def read_device_name(reader: TableReader, section: str, default: str) -> str:
    """`name` of one section of an array."""
    name = reader.text(section, "name", default)
    if not is_name(name):
        letters = "A-Z a-z 0-9 _ . - that begin with a letter or digit"
        reader.refuse(section, "name", f"1 to {NAME_MAX_LENGTH} of {letters}")
        return default
    return name


def config_path(name: str, *, user: bool) -> str:
    """Where the configuration of the VM `name` belongs: for the system instance, or for the user's own."""
    check_name(name)
    return f"{config_directory(user=user)}/{name}{_SUFFIX}"


def config_directory(*, user: bool) -> str:
    """Where all configurations of the system instance are, or those of the user's own VMs."""
    if not user:
        return SYSTEM_DIRECTORY
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if not home.startswith("/"):  # XDG base directory specification: a relative path is to be ignored
        home = os.path.expanduser("~/.config")
    return os.path.normpath(f"{home}/vmservice")


def configured_names(*, user: bool) -> list[str]:
    """The VMs that have a file there or drop-ins, whatever is in them, by `natural_key`; OSError where nobody may read it."""
    folder = config_directory(user=user)
    try:
        files = os.listdir(folder)
    except FileNotFoundError:
        return []
    names = {file.removesuffix(_SUFFIX) for file in files if file.endswith(_SUFFIX)}
    for file in files:
        name = file.removesuffix(DROP_INS_SUFFIX)
        if name != file and has_drop_ins(f"{folder}/{name}{_SUFFIX}"):
            names.add(name)
    return sorted((name for name in names if is_name(name)), key=natural_key)


def configured_by(file: str) -> str | None:
    """The VM that is configured by this file of the directory, NAME.toml or NAME.toml.d/*.toml; None for any other file."""
    own, _, drop_in = file.partition("/")
    name = own.removesuffix(DROP_INS_SUFFIX if drop_in else _SUFFIX)
    if name == own or not is_name(name) or (drop_in and (drop_in[0] == "." or not drop_in.endswith(_SUFFIX))):
        return None
    return name


def has_drop_ins(path: str) -> bool:
    """Whether the configuration at `path` has drop-ins, without which it needs a file; or may have, where this account cannot
    look."""
    try:
        return any(file.endswith(_SUFFIX) and file[0] != "." for file in os.listdir(f"{path}.d"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """By this names are sorted as a person counts: web2 is before web10."""
    parts = ("".join(letters) for _, letters in groupby(name, "0123456789".__contains__))
    return [(0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts]


def whose_config(path: str) -> tuple[str, bool] | None:
    """The VM whose configuration belongs at `path`, and whether it is the user's own; None for a file elsewhere."""
    path = os.path.abspath(path)
    name = os.path.basename(path).removesuffix(_SUFFIX)
    if is_name(name):
        for user in (False, True):
            if path == config_path(name, user=user):
                return name, user
    return None


def is_made_by_unit(folder: str) -> bool:
    """Whether it is one that a VM's unit makes at its start by StateDirectory=, LogsDirectory= or RuntimeDirectory=, of the
    system or of the user."""
    parent, name = os.path.split(folder)
    if not is_name(name):
        return False
    home = os.path.expanduser("~")
    settings = os.environ.get("XDG_CONFIG_HOME", f"{home}/.config")
    state = os.environ.get("XDG_STATE_HOME", f"{home}/.local/state")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/run")
    # Before version 254 systemd had a user's state and logs below the settings.
    places = (runtime, state, f"{state}/log", settings, f"{settings}/log", "/run", "/var/lib", "/var/log")
    return parent in [f"{place}/vmservice" for place in places]
