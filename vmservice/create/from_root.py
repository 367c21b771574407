"""A disk made of the files of a root: a folder or a tar, as mmdebstrap and mkosi write them."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass

from vmservice.create.progress import human
from vmservice.errors import ConfigError, HostError, HostFacilityMissing, NotPermitted
from vmservice.image import tools
from vmservice.image.partitions import write_root_partition

PACKAGE = "e2fsprogs"

_MIB = 1 << 20
# Without --size: sparse, so that what nobody uses takes no room.
_DEFAULT_BYTES = 4 << 30
# mke2fs takes tars since.
_TAR_VERSION = (1, 47, 1)


@dataclass(frozen=True)
class Root:
    """`stored_bytes` is what the files take, a tar as it is."""

    path: str
    is_tar: bool
    stored_bytes: int
    least_bytes: int = 0

    def fill(self, disk: int, wanted_bytes: int, account: tools.Account | None) -> None:
        """Make the empty file `disk` a disk with one partition, ext4, that has them. HostError where mke2fs cannot,
        HostFacilityMissing where it lacks a library for it."""
        size = wanted_bytes or max(_DEFAULT_BYTES, 2 * self.stored_bytes)
        print(f"fill a disk of {human(size)} with {self.path}", file=sys.stderr, flush=True)
        os.ftruncate(disk, size // _MIB * _MIB)
        partition = write_root_partition(disk)
        line = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", f"offset={partition.offset},nodiscard", "-d", self.path]
        line += [f"/proc/self/fd/{disk}", f"{partition.size_bytes >> 10}k"]
        done = tools.run(line, PACKAGE, fd=disk, timeout_sec=None)
        if done.returncode != 0:
            if b"need libarchive" in done.stderr:  # it says so before its last line, which is no help
                raise HostFacilityMissing(
                    f"--from-root: mke2fs reads the tar {self.path} by libarchive, which is not there: install libarchive13t64,"
                    " or unpack the tar and give the folder"
                )
            raise HostError(f"no disk of {human(size)} can be made of {self.path}: {tools.last_line(done.stderr)}")

    def close(self) -> None:
        """Nothing is open."""


def open_root(path: str) -> Root:
    """ConfigError for what is neither a folder nor a file, NotPermitted and HostFacilityMissing where it cannot be read."""
    path = os.path.abspath(path)
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            return _folder(path)
        if stat.S_ISREG(kind):
            return _tar(path)
    except OSError as error:
        raise ConfigError(f"--from-root: {path} cannot be read: {error.strerror}") from None
    raise ConfigError(f"--from-root: {path} is neither a folder nor a tar")


def _folder(path: str) -> Root:
    if not os.path.isdir(f"{path}/usr"):
        raise ConfigError(f"--from-root: {path} is no root of a system: it has no folder usr")
    if os.geteuid() != 0:
        raise NotPermitted(
            f"--from-root: the files of {path} keep their owners, which only root can read; run this as root, or give a tar"
        )
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return Root(path, False, size)


def _tar(path: str) -> Root:
    said = tools.run(["mke2fs", "-V"], PACKAGE).stderr.decode(errors="replace")
    found = re.search(r"mke2fs (\d+)\.(\d+)(?:\.(\d+))?", said)
    version = tuple(int(part or 0) for part in found.groups()) if found else ()
    if version < _TAR_VERSION:
        raise HostFacilityMissing(
            f"--from-root: {path} takes mke2fs 1.47.1, as Debian 13 has it, and libarchive; else unpack it and give the folder"
        )
    return Root(path, True, os.stat(path).st_size)
