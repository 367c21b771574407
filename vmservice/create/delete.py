"""`vmservice delete NAME`: what `create` has made goes, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from vmservice.create import places
from vmservice.create.places import Place
from vmservice.create.progress import human
from vmservice.errors import ConfigError, HostError

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Deleted:
    """`kept` are files that `create` did not make. With `is_enabled` the unit would still be wanted at the next boot."""

    kept: list[str]
    is_enabled: bool


def delete(place: Place, ask: Callable[[str], bool]) -> Deleted | None:
    """None where the person, who is asked with a text of what goes, does not want it.

    ConfigError where nothing is there that `create` made; HostFacilityMissing while the VM runs.
    """
    made = places.read_made(place.folder)
    if made is None:
        if not os.path.lexists(place.configuration):
            raise ConfigError(f"there is no VM {place.name}: {place.configuration} does not exist")
        raise ConfigError(
            f"{place.name} was not made by `vmservice create`, so it is not known what belongs to it; remove"
            f" {place.configuration}, and what that names, by hand"
        )
    lock = places.hold(place, "delete")
    try:
        folder = os.open(place.folder, _OPEN_FOLDER)
        try:
            there = [name for name in made.files if _is_there(folder, name)]
            if not ask(_shown(place, folder, there)):
                return None
            # The configuration first: without it the VM cannot be started any more.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.configuration)
            # The list last: what an interruption leaves can be deleted again.
            for name in sorted(there, key=lambda one: one == places.MANIFEST):
                os.unlink(name, dir_fd=folder)
            kept = sorted(os.listdir(folder))
        finally:
            os.close(folder)
        if not kept:
            os.rmdir(place.folder)
        return Deleted(kept, places.unit_word(place, "is-enabled") == "enabled")
    except OSError as error:
        raise HostError.from_os(f"cannot delete {error.filename or place.folder}", error) from error
    finally:
        os.close(lock)


def _is_there(folder: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _shown(place: Place, folder: int, names: list[str]) -> str:
    lines = [f"  {place.configuration}"] if os.path.lexists(place.configuration) else []
    for name in names:
        status = os.lstat(name, dir_fd=folder)
        lines.append(f"  {place.folder}/{name} ({human(status.st_blocks * 512)})")
    return "\n".join(lines)
