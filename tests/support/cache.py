"""Things that take long to build and are the same for every run: root trees, guest images, virtual environments.

They live outside the checkout, each under a name that holds a hash of its recipe, so a changed recipe is a new entry and an old
one is never half right. An entry appears by a rename, when it is complete; a lock makes a second run wait for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """$VMSERVICE_CACHE, or vmservice in the user's cache folder."""
    chosen = os.environ.get("VMSERVICE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmservice"


def recipe_hash(*parts: str | bytes) -> str:
    """Twelve hexadecimal digits that change with any of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:12]


def cached(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """The entry `name`-`recipe` (a hash), made by `build(path)` if it is not there yet. `build` creates the file or folder."""
    entry = cache_dir() / f"{name}-{recipe}"
    if entry.exists():
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(cache_dir() / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.exists():
            _build(entry, name, build)
            _forget_others(entry, name)
        return entry
    finally:
        os.close(lock)


def _build(entry: Path, name: str, build: Callable[[Path], None]) -> None:
    """Builds under a name that nobody uses, left over or not, and renames."""
    temporary = entry.with_name(f".{entry.name}.part")
    _remove(temporary)
    say(f"building {name} …")
    begin = time.monotonic()
    try:
        build(temporary)
        temporary.rename(entry)
    finally:
        _remove(temporary)
    say(f"built {name} in {time.monotonic() - begin:.0f} s")


def _forget_others(entry: Path, name: str) -> None:
    """Entries of an older recipe go: a root tree is half a gigabyte. Nothing built later than a day ago is touched: another
    checkout may be using it."""
    for other in entry.parent.glob(f"{name}-{'[0-9a-f]' * 12}"):
        if other != entry and time.time() - other.stat().st_ctime > 86400:
            _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def say(line: str) -> None:
    """A line of progress, for a person, at once."""
    print(f"lab: {line}", file=sys.stderr, flush=True)
