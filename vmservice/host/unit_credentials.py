"""The credentials that systemd gives the VM's unit, by LoadCredential= and SetCredential=: $CREDENTIALS_DIRECTORY."""

from __future__ import annotations

import os
import stat

from vmservice.errors import ConfigError, HostError, quoted

_VARIABLE = "CREDENTIALS_DIRECTORY"

# What they may come from: systemd.exec(5).
SETTINGS = "LoadCredential=, SetCredential= or ImportCredential="


def are_there() -> bool:
    """Whether the unit has any: systemd sets the variable only then."""
    return bool(os.environ.get(_VARIABLE))


def unit_credentials(most_bytes: int) -> dict[str, bytes]:
    """By name, in the order of their names; none outside a unit that has some.

    ConfigError where one is larger than `most_bytes`, HostError where one cannot be read; neither holds a value.
    """
    folder = os.environ.get(_VARIABLE, "")
    if not folder:
        return {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise HostError.from_os(f"cannot list the unit's credentials in {folder}", error) from error
    found = {}
    for name in names:
        value = _read(f"{folder}/{name}", most_bytes)
        if value is not None:
            found[name] = value
    return found


def _read(path: str, most_bytes: int) -> bytes | None:
    """What a regular file has; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            if status.st_size > most_bytes:
                raise ConfigError(f"{_named(path)} has {status.st_size} bytes; at most {most_bytes} are possible")
            return os.read(fd, most_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os(f"cannot read {_named(path)}, {path}", error) from error


def _named(path: str) -> str:
    return f"the credential {quoted(os.path.basename(path))} of the VM's unit ({SETTINGS})"
