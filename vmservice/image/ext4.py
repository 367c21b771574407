"""Files of an ext2, ext3 or ext4 file system, by debugfs: no mount, no root, and nothing is written."""

from __future__ import annotations

import posixpath
import subprocess
from collections.abc import Iterable

from vmservice.errors import ConfigError, HostError
from vmservice.image.tools import Image

PACKAGE = "e2fsprogs"

_LINKS_MAX = 20
# What is read into memory: settings, never a kernel.
_TEXT_MAX_BYTES = 4 << 20


class Ext4:
    """The file system that begins at `offset`. Paths are absolute in it; symbolic links are followed inside it."""

    kind = "ext4"

    def __init__(self, image: Image, offset: int) -> None:
        self._image = image
        self._offset = offset
        # By request. Each takes a process, and an image does not change.
        self._answers: dict[str, bytes] = {}

    def look_ahead(self, files: Iterable[str], folders: Iterable[str]) -> None:
        """Ask for many at once, by one process, that may be asked for one by one later. They need not be there."""
        requests = [*(_stat(path) for path in files), *(_list(path) for path in folders)]
        said = self._run(["-f", "-"], subprocess.PIPE, "".join(f"{one}\n" for one in requests).encode())
        # Each request is repeated, and what it gives follows; of what is not there, nothing.
        rest = said.stdout
        for number, request in enumerate(requests):
            _, mark, behind = rest.partition(b"debugfs: " + request.encode() + b"\n")
            following = b"debugfs: " + requests[number + 1].encode() + b"\n" if number + 1 < len(requests) else b""
            if not mark or (following and following not in behind):
                return
            self._answers[request] = behind.partition(following)[0] if following else behind
            rest = behind

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        found = self._find(path)
        if found is None or found[1] > _TEXT_MAX_BYTES:
            return None
        return self._ask(f'cat "{found[0]}"').decode(errors="replace")

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is no such one."""
        found = self._find(path)
        return None if found is None else found[1]

    def names(self, path: str) -> list[str]:
        """What the folder has; nothing where there is no such one."""
        if not _is_plain(path):
            return []
        # /INODE/MODE/UID/GID/NAME/SIZE/
        lines = (line.split("/") for line in self._ask(_list(path)).decode(errors="replace").splitlines())
        return sorted(fields[5] for fields in lines if len(fields) > 6 and fields[5] not in (".", ".."))

    def copy(self, path: str, output: int) -> None:
        """Write the file to the descriptor `output`. ConfigError where it is not there, HostError where it comes short."""
        found = self._find(path)
        if found is None:
            raise ConfigError(f"{self._image.path} has no file {path}")
        done = self._run(["-R", f'cat "{found[0]}"'], output)
        if done.returncode != 0 or b": " in done.stderr.partition(b"\n")[2]:
            raise HostError(f"{path} cannot be read out of {self._image.path}: {_reason(done.stderr)}")

    def _find(self, path: str) -> tuple[str, int] | None:
        """(path without a link at its end, bytes)."""
        for _ in range(_LINKS_MAX):
            if not _is_plain(path):
                return None
            said = self._ask(_stat(path)).decode(errors="replace")
            if "Type: regular" in said:
                return path, int(said.partition("Size: ")[2].split()[0])
            if "Type: symlink" not in said:
                return None
            # One of up to 59 bytes is in the inode; a longer one is not followed.
            target = said.partition('Fast link dest: "')[2].rpartition('"')[0]
            if not target:
                return None
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return None

    def _ask(self, request: str) -> bytes:
        if request in self._answers:
            return self._answers[request]
        done = self._run(["-R", request], subprocess.PIPE)
        if done.returncode != 0 or b"while trying to open" in done.stderr:
            raise HostError(f"{self._image.path} cannot be read by debugfs: {_reason(done.stderr)}")
        self._answers[request] = done.stdout
        return done.stdout

    def _run(self, words: list[str], output: int, requests: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        return self._image.run(["debugfs", *words, f"{self._image.name}?offset={self._offset}"], PACKAGE, output, requests)


def _stat(path: str) -> str:
    return f'stat "{path}"'


def _list(path: str) -> str:
    return f'ls -p "{path}"'


def _is_plain(path: str) -> bool:
    """Whether it can be a word of a request: what is in an image may be called anything."""
    return path.isprintable() and '"' not in path and len(path.encode()) < 4096


def _reason(said: bytes) -> str:
    """debugfs' own words, without the line with its version."""
    lines = [line for line in said.decode(errors="replace").splitlines()[1:] if line.strip()]
    text = lines[0].strip() if lines else "it says nothing"
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
