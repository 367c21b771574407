"""The network of the host, for a process of root's that was begun in a network namespace without any (PrivateNetwork=)."""

from __future__ import annotations

import os

from vmservice.errors import HostError

_CLONE_NEWNET = 0x40000000


def enter(path: str = "/proc/1/ns/net") -> None:
    """The namespace of the service manager, from now on and for what this thread begins. HostError."""
    import ctypes

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # os.setns comes with Python 3.12.
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError.from_os("cannot enter the host's network namespace", error) from error
