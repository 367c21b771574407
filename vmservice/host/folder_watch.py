"""Watches which names there are in a folder that may come, go and be replaced: inotify(7)."""

from __future__ import annotations

import ctypes
import errno
import os

from vmservice.errors import HostError

# <sys/inotify.h>
_IN_ATTRIB = 0x4
_IN_MOVED_FROM = 0x40
_IN_MOVED_TO = 0x80
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_DELETE_SELF = 0x400
_IN_MOVE_SELF = 0x800
_IN_ONLYDIR = 0x1000000
_NAMES = _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_DELETE_SELF | _IN_MOVE_SELF
_WATCHED = _NAMES | _IN_ATTRIB | _IN_ONLYDIR  # IN_ATTRIB: what may not be read now may be so later
# No trouble of one folder: the user's watches are all in use, or the kernel's memory.
_NO_MORE = (errno.ENOSPC, errno.ENOMEM)
_EVENTS_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """`fd` is readable when the names in the folder at `path`, absolute, may have changed since `names` was called last.

    While the folder is not there, the nearest one above it is watched, for the next on the way. Folders in it whose names end
    in `subfolders` are watched too; `closed` are those of them that could not be looked into at that call.
    """

    def __init__(self, path: str, subfolders: str) -> None:
        self._path = path
        self._subfolders = subfolders
        self.closed: list[str] = []
        self._watches: set[int] = set()
        self.fd = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        if self.fd < 0:
            raise HostError.from_os(f"cannot watch {path}", OSError(ctypes.get_errno(), ""))

    def names(self) -> list[str]:
        """The files that are there now, those in subfolders as folder/file; none where there is no folder. HostError where it
        cannot be watched or read."""
        self._watch_anew()
        self.closed = []
        files, folders = self._list(self._path)
        for folder in folders:
            if not folder.endswith(self._subfolders):
                continue
            try:
                if self._watch(f"{self._path}/{folder}"):
                    files += [f"{folder}/{file}" for file in self._list(f"{self._path}/{folder}")[0]]
            except HostError as error:
                if error.errno in _NO_MORE:
                    raise
                self.closed.append(folder)  # its own trouble, and not that of the others
        return files

    def _list(self, path: str) -> tuple[list[str], list[str]]:
        """Files, and folders."""
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    (folders if self._is_folder(entry) else files).append(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except OSError as error:
            raise HostError.from_os(f"cannot read {path}", error) from None
        return files, folders

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link in a circle, or to where we may not look: by its name
            return entry.name.endswith(self._subfolders)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _watch_anew(self) -> None:
        """What comes after this makes `fd` readable. A watch stays with a folder that is renamed, so each is set anew."""
        for watch in self._watches:
            _libc.inotify_rm_watch(self.fd, watch)
        self._watches = set()
        self._drain()
        while (missing := self._watch_nearest()) and os.path.isdir(missing):
            pass  # it came after it had been looked for

    def _watch_nearest(self) -> str:
        """Watch the folder, or the nearest one above it; what is missing below that one, or nothing. HostError where one on the
        way cannot be watched; then it is that one above it, which hears when that may be read."""
        path, missing = self._path, ""
        refused: HostError | None = None
        while True:
            try:
                is_there = self._watch(path)
            except HostError as error:
                refused, is_there = refused or error, False
            if is_there or path == "/":
                break
            path, missing = os.path.dirname(path), path
        if refused is not None:
            raise refused
        return missing

    def _watch(self, path: str) -> bool:
        """Whether there is such a folder."""
        watch = _libc.inotify_add_watch(self.fd, os.fsencode(path), _WATCHED)
        if watch >= 0:
            self._watches.add(watch)
            return True
        error = OSError(ctypes.get_errno(), "")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return False
        raise HostError.from_os(f"cannot watch {path}", error)

    def _drain(self) -> None:
        try:
            while os.read(self.fd, _EVENTS_BYTES):
                pass
        except BlockingIOError:
            return
