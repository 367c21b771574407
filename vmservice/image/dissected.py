"""Files of an image whose root is no ext4, by systemd-dissect: the host's kernel mounts it, read-only, which takes root.

From systemd 256 on systemd-mountfsd may do that for others. The list of files takes systemd 253.
"""

from __future__ import annotations

import os
import subprocess

from vmservice.errors import ConfigError, HostError
from vmservice.image.tools import Image, last_line, run

PROGRAM = "systemd-dissect"
PACKAGE = "systemd-container"

_TEXT_MAX_BYTES = 4 << 20


class Dissected:
    """The whole image, with its partitions for the boot loader in /boot and /efi. Links are followed inside it."""

    kind = "dissected"

    def __init__(self, image: Image) -> None:
        """HostError where systemd-dissect cannot, in its own words."""
        self._image = image
        self._folders: dict[str, list[str]] = {}
        self._sizes: dict[str, int | None] = {}
        done = self._run("--list", image.name)
        if done.returncode != 0:
            raise HostError(f"{image.path} cannot be read by {PROGRAM}: {last_line(done.stderr)}")
        for line in done.stdout.decode(errors="replace").splitlines():
            folder, _, name = line.removeprefix("./").strip("/").rpartition("/")
            self._folders.setdefault(f"/{folder}", []).append(name)

    def text(self, path: str) -> str | None:
        """None where there is no such file."""
        if not self._is_listed(path):
            return None
        done = self._copy_from(path, subprocess.PIPE)
        return done.stdout[:_TEXT_MAX_BYTES].decode(errors="replace") if done.returncode == 0 else None

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is no such one. Where it cannot be had but by a copy, it is copied."""
        if path not in self._sizes:
            self._sizes[path] = self._look_at_size(path)
        return self._sizes[path]

    def names(self, path: str) -> list[str]:
        """What the folder has; nothing where there is no such one."""
        return sorted(self._folders.get(path.rstrip("/") or "/", []))

    def copy(self, path: str, output: int) -> None:
        """Write the file to the descriptor `output`. ConfigError where it is not there, HostError where it comes short."""
        if not self._is_listed(path):
            raise ConfigError(f"{self._image.path} has no file {path}")
        if self._copy_from(path, output).returncode != 0:
            raise HostError(f"{path} cannot be read out of {self._image.path}")

    def _look_at_size(self, path: str) -> int | None:
        if not self._is_listed(path):
            return None
        fd = os.memfd_create("size", os.MFD_CLOEXEC)
        try:
            return os.fstat(fd).st_size if self._copy_from(path, fd).returncode == 0 else None
        finally:
            os.close(fd)

    def _is_listed(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        # A folder may be a link, of which the list does not say where it leads.
        return name in self._folders.get(folder or "/", []) or (folder or "/") not in self._folders

    def _copy_from(self, path: str, output: int) -> subprocess.CompletedProcess[bytes]:
        return self._run("--copy-from", self._image.name, path, "-", output=output)

    def _run(self, *words: str, output: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
        """As whoever we are: it is root who may mount."""
        return run([PROGRAM, *words], PACKAGE, output=output, fd=self._image.fd)
