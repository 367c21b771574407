"""An image of somebody's as the disk of a VM: raw, sparse, and shared with the original where the file system can."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import subprocess
from dataclasses import dataclass

from vmservice.create.progress import Progress, human
from vmservice.errors import ConfigError, HostError, HostFacilityMissing
from vmservice.host import image_lock, storage
from vmservice.image.guest import find_partitions
from vmservice.image.tools import Account, last_line

_FICLONE = 0x40049409  # <linux/fs.h>
_CHUNK_BYTES = 32 << 20
_BUFFER_BYTES = 1 << 20
_NOT_BY_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY)

_QCOW2_MAGIC = b"QFI\xfb"
# Of the header (docs/interop/qcow2.rst): where the name of a backing file is, the virtual size, and the bits that a reader must
# know, of which the third means that the data are in another file.
_BACKING_AT, _SIZE_AT, _FEATURES_AT = 8, 24, 72
_EXTERNAL_DATA = 1 << 2

# What people have by mistake: magic → (what it is, what to do).
_OTHER = {
    b"\x1f\x8b": ("compressed with gzip", "gunzip it first"),
    b"\xfd7zXZ\0": ("compressed with xz", "unpack it with xz -d first"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it with zstd -d first"),
    b"BZh": ("compressed with bzip2", "unpack it with bunzip2 first"),
    b"PK\x03\x04": ("a zip archive", "unpack it first"),
    b"KDMV": ("an image in vmdk", "convert it with qemu-img convert -O qcow2 first"),
    b"vhdxfile": ("an image in vhdx", "convert it with qemu-img convert -O qcow2 first"),
    b"conectix": ("an image in vpc", "convert it with qemu-img convert -O qcow2 first"),
    b"<<< ": ("an image in vdi", "convert it with qemu-img convert -O qcow2 first"),
}


@dataclass(frozen=True)
class Source:
    """An open image, not to be written to by anybody as long. `size_bytes` is what a guest sees of it."""

    path: str
    fd: int
    is_qcow2: bool
    size_bytes: int
    stored_bytes: int

    @property
    def least_bytes(self) -> int:
        """A disk of fewer would lack a part of it."""
        return self.size_bytes

    def fill(self, disk: int, wanted_bytes: int, account: Account | None) -> None:
        """Make the empty file `disk` a disk of `size_bytes`. What is wanted beyond that is for who knows what is in it."""
        copy(self, disk, account)

    def close(self) -> None:
        os.close(self.fd)


def open_source(path: str) -> Source:
    """ConfigError for what is no image that can be taken, HostFacilityMissing for one that is in use."""
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise ConfigError(f"--image: {path} does not exist")
    fd = storage.open_image(path, "--image", os.O_RDONLY, claim=False)
    try:
        image_lock.take(fd, path, "--image", writer=False)
        head = os.pread(fd, 512, 0)
        for magic, (what, remedy) in _OTHER.items():
            if head.startswith(magic):
                raise ConfigError(f"--image: {path} is {what}; {remedy}")
        size = storage.size_of(fd)
        is_qcow2 = head.startswith(_QCOW2_MAGIC)
        if is_qcow2:
            stored, size = size, _size_of_qcow2(head, path)
        else:
            # Before it is copied, which may take minutes.
            find_partitions(fd, size, path)
            stored = sum(end - start for start, end in _extents(fd, size))
        return Source(path, fd, is_qcow2, size, stored)
    except OSError as error:
        os.close(fd)
        raise HostError.from_os(f"--image: {path} cannot be read", error) from error
    except BaseException:
        os.close(fd)
        raise


def copy(source: Source, target: int, account: Account | None = None) -> None:
    """All of it, to the empty file `target`, with the progress on standard error. HostError where that fails.

    `account` is whose the target is; None: ours.
    """
    room = os.fstatvfs(target)
    free = room.f_bavail * room.f_frsize
    progress = Progress("convert" if source.is_qcow2 else "copy", source.stored_bytes)
    try:
        os.ftruncate(target, source.size_bytes)
        if not source.is_qcow2 and _clone(source.fd, target):
            progress.end()
            return
        if source.stored_bytes > free:
            raise HostError(f"there is no room: the image takes {human(source.stored_bytes)}, and {human(free)} are free")
        if source.is_qcow2:
            _convert(source, target, progress, account)
        else:
            _copy_extents(source, target, progress)
        progress.end()
    except OSError as error:
        progress.abandon()
        raise HostError.from_os(f"{source.path} cannot be copied", error) from error
    except BaseException:
        progress.abandon()
        raise


def _size_of_qcow2(head: bytes, path: str) -> int:
    """ConfigError for one that has a part of its data elsewhere: whoever wrote the image says where, and we may be root."""
    version = int.from_bytes(head[4:8], "big")
    features = int.from_bytes(head[_FEATURES_AT : _FEATURES_AT + 8], "big") if version >= 3 else 0
    if any(head[_BACKING_AT : _BACKING_AT + 8]) or features & _EXTERNAL_DATA:
        raise ConfigError(
            f"--image: {path} has a part of its data in another file; make one file of it with qemu-img convert -O qcow2 first"
        )
    return int.from_bytes(head[_SIZE_AT : _SIZE_AT + 8], "big")


def _clone(source: int, target: int) -> bool:
    """Whether the file system has made the copy, which takes no room."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of each part that is no hole."""
    found = []
    place = 0
    while place < size:
        try:
            start = os.lseek(fd, place, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                break
            start, end = place, size  # a device, or a file system that does not tell
        found.append((start, min(end, size)))
        place = max(end, place + 1)
    return found


def _copy_extents(source: Source, target: int, progress: Progress) -> None:
    done = 0
    by_kernel = True
    for start, end in _extents(source.fd, source.size_bytes):
        place = start
        while place < end:
            count = 0
            if by_kernel:
                try:
                    count = os.copy_file_range(source.fd, target, min(end - place, _CHUNK_BYTES), place, place)
                except OSError as error:
                    if error.errno not in _NOT_BY_KERNEL:
                        raise
                by_kernel = count > 0
            if not count:
                count = os.pwrite(target, os.pread(source.fd, min(end - place, _BUFFER_BYTES), place), place)
            if not count:
                raise OSError(errno.EIO, "the image has become shorter")
            place += count
            done += count
            progress.at(done)


def _convert(source: Source, target: int, progress: Progress, account: Account | None) -> None:
    """By qemu-img, which says how far it is: "    (12.34/100%)". As the account, where all may read the image: it may be made
    to deceive its reader."""
    if account is not None and not os.fstat(source.fd).st_mode & stat.S_IROTH:
        account = None
    names = [f"/proc/self/fd/{fd}" for fd in (source.fd, target)]
    line = ["qemu-img", "convert", "-p", "-f", "qcow2", "-O", "raw", "-n", "--target-is-zero", *names]
    try:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(source.fd, target),
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    except FileNotFoundError:
        raise HostFacilityMissing(
            "the image is in qcow2, which takes qemu-img, and that is not installed; Debian has it in qemu-utils"
        ) from None
    with process:
        try:
            assert process.stdout is not None and process.stderr is not None
            while part := os.read(process.stdout.fileno(), 4096):
                shares = re.findall(rb"\(\s*([\d.]+)/100%\)", part)
                if shares:
                    progress.at(int(float(shares[-1]) / 100 * source.stored_bytes))
            said = process.stderr.read()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise HostError(f"{source.path} cannot be converted: {last_line(said)}")
