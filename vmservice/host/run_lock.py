"""A VM runs once: the lock that whoever runs it holds, from before its first vCPU until the process is gone.

It is a flock(2) on a directory: there is no file to be left behind or taken over, the kernel gives it back, and who may not
read the directory cannot hold it. In the system instance that is the VM's state directory, for systemd removes the runtime
directory, with any lock in it, when a second start of the unit fails. A user's own VMs have theirs in the user's runtime
directory, of which systemd removes only a folder for each VM.
"""

from __future__ import annotations

import errno
import fcntl
import os

from vmservice.errors import HostError, HostFacilityMissing

_SYSTEM_DIRECTORY = "/var/lib/vmservice"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def hold(name: str, *, user: bool) -> int:
    """The descriptor that holds the lock of the VM `name`, of a user or of the system; HostFacilityMissing if it runs."""
    path = ""
    try:
        path, fd = _open(name, user=user)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostFacilityMissing(f"the VM {name} runs already{_by_whom(path)}: {path} is locked") from None
    except OSError as error:
        raise HostError.from_os(f"cannot lock the directory of the VM {name}, {error.filename or path}", error) from error
    return fd


def _open(name: str, *, user: bool) -> tuple[str, int]:
    if not user:
        # The unit's own has the variable. By hand it is the same one for root and for the account that it belongs to.
        path = os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or f"{_SYSTEM_DIRECTORY}/{name}"
        try:
            if os.geteuid() == 0:
                os.makedirs(path, 0o700, exist_ok=True)
            return path, os.open(path, _OPEN)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
    path = f"{_runtime_directory()}/vmservice.lock/{name}"
    os.makedirs(path, 0o700, exist_ok=True)
    return path, os.open(path, _OPEN)


def _runtime_directory() -> str:
    """The user's, which is nobody else's."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    usual = f"/run/user/{os.geteuid()}"
    if given.startswith("/") or os.path.isdir(usual):
        return given or usual
    # Without a login session.
    path = f"/tmp/vmservice-{os.geteuid()}"
    os.makedirs(path, 0o700, exist_ok=True)
    if os.lstat(path).st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to somebody else", path)
    return path


def _by_whom(path: str) -> str:
    """`, as process N`, where /proc tells."""
    status = os.stat(path)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            locks = [line.split() for line in file]
    except OSError:  # ProcSubset=pid
        return ""
    holders = [lock[4] for lock in locks if lock[1] == "FLOCK" and lock[5] == device]
    return f", as process {holders[0]}" if holders else ""
