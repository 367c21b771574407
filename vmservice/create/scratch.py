"""The folder in which a VM's files are made, until it becomes the VM's own by a rename."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable

from vmservice.create.places import Made, Place
from vmservice.errors import HostError, HostFacilityMissing

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """Beside the VM's own folder, and called as no VM can be. Locked, so that what a killed `create` left there is told from
    what another one is just making."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._path = f"{os.path.dirname(place.folder)}/.{place.name}.create"
        self._fd = -1

    def make(self) -> None:
        """HostFacilityMissing while another `create` makes the same VM."""
        parent = os.path.dirname(self._path)
        try:
            os.makedirs(parent, 0o700 if self._place.user else 0o755, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._path, 0o700)
            self._fd = self._lock()
            for name in os.listdir(self._fd):
                os.unlink(name, dir_fd=self._fd)
        except BlockingIOError:
            name = self._place.name
            raise HostFacilityMissing(f"another `vmservice create {name}` is under way: {self._path} is locked") from None
        except OSError as error:
            raise HostError.from_os(f"cannot make {self._path}", error) from error

    def remove(self) -> None:
        """Take it back, however far it has come; nothing that is another's."""
        if self._fd < 0:
            self._fd = self._lock()
        for path in (self._path, self._place.folder):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.lstat(path)):
                    remove_folder(path)

    def become(self) -> None:
        """The VM's folder. OSError where another one with files has come there."""
        account = self._place.account
        if account is not None:
            os.fchown(self._fd, account.uid, account.gid)
        os.rename(self._path, self._place.folder)

    def write(self, name: str, fill: Callable[[int], None], made: Made) -> None:
        """Make a file, have it filled, and add it to what was made. HostError where the host cannot."""
        try:
            fd = new_file(self._fd, name, self._place)
            try:
                if name not in made.files:
                    made.files.append(name)
                fill(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError.from_os(f"cannot write {name} of {self._place.name}", error) from error

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _lock(self) -> int:
        fd = os.open(self._path, _OPEN)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(fd)
            raise
        return fd


def new_file(folder: int, name: str, place: Place) -> int:
    """A file of the VM's account in the open `folder`, to read and write, where there was none. OSError."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    if place.account is not None:
        os.fchown(fd, place.account.uid, place.account.gid)
    return fd


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def remove_folder(path: str) -> None:
    """A folder and the files in it. One that has folders in it stays: that is not what was made."""
    for name in os.listdir(path):
        os.unlink(os.path.join(path, name))
    os.rmdir(path)
