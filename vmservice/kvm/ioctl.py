"""The one door to ioctl(2), and the numbers of its requests.

Through ctypes rather than fcntl: fcntl.ioctl takes a C int (0xfffbd000 overflows). Both release the GIL.
"""

from __future__ import annotations

import ctypes
import fcntl
import sys

from vmservice.errors import KvmError

# The bare function: -1 for failure, and then get_errno() says why.
ioctl = ctypes.CDLL(None, use_errno=True).ioctl
ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
ioctl.restype = ctypes.c_int
get_errno = ctypes.get_errno

_KVMIO = 0xAE

# Directions of <asm-generic/ioctl.h>, as user space sees them.
_WRITE = 1
_READ = 2


def io(number: int) -> int:
    """_IO(KVMIO, number): no argument, or an integer one."""
    return _KVMIO << 8 | number


def iow(number: int, size_bytes: int) -> int:
    """_IOW(KVMIO, number, struct of size_bytes): the kernel reads."""
    return _WRITE << 30 | size_bytes << 16 | io(number)


def ior(number: int, size_bytes: int) -> int:
    """_IOR(KVMIO, number, struct of size_bytes): the kernel writes."""
    return _READ << 30 | size_bytes << 16 | io(number)


def iowr(number: int, size_bytes: int) -> int:
    """_IOWR(KVMIO, number, struct of size_bytes): the kernel does both."""
    return (_READ | _WRITE) << 30 | size_bytes << 16 | io(number)


def _bare_by_ctypes(fd: int, request: int) -> int:
    result: int = ioctl(fd, request, 0)
    if result < 0:
        raise OSError(get_errno(), "")
    return result


# `bare(fd, request)`: without an argument, for KVM_RUN, where each call in between counts. OSError when the kernel refuses:
# InterruptedError (EINTR), BlockingIOError (EAGAIN). fcntl.ioctl takes half of the time that ctypes takes, but from Python 3.14
# on it retries EINTR by itself: a kicked KVM_RUN would never come back.
bare = fcntl.ioctl if sys.version_info < (3, 14) else _bare_by_ctypes


def raw(fd: int, request: int, argument: int) -> int:
    """The system call's result, or minus errno: for questions whose refusal is an answer."""
    result: int = ioctl(fd, request, argument)
    return result if result >= 0 else -get_errno()


def call(fd: int, request: int, argument: int | ctypes.Structure | ctypes.Array[ctypes.c_char] = 0, *, name: str) -> int:
    """`request` on `fd`; its result. KvmError, with `name` as <linux/kvm.h> has it, when the kernel refuses."""
    address = argument if isinstance(argument, int) else ctypes.addressof(argument)
    result = raw(fd, request, address)
    if result < 0:
        raise KvmError.from_os(f"{name} failed", OSError(-result, ""))
    return result
