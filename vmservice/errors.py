"""Every error that vmservice raises on purpose, typed by who is to blame.

The text of each is one sentence for a person: what is wrong, with the values, and what would be right. It never holds a
traceback or a path into our own sources. Anything that is not a `VmmError` is a bug of ours.
"""

from __future__ import annotations

import os


class VmmError(Exception):
    """The root; `exit_status` follows sysexits(3) and is what `vmservice` exits with."""

    exit_status = 70


class UsageError(VmmError):
    """The command line is wrong."""

    exit_status = 64


class ConfigError(VmmError):
    """The operator's configuration, or a file that it names, is wrong."""

    exit_status = 78


class HostError(VmmError):
    """The host refused an operation; `errno` is its reason, 0 where there is none."""

    exit_status = 71

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def from_os(cls, operation: str, error: OSError) -> HostError:
        """`operation` reads as what failed: `cannot open /dev/kvm`."""
        number = error.errno or 0
        return cls(f"{operation}: {os.strerror(number)} (errno {number})", number)


class KvmError(HostError):
    """A KVM ioctl failed."""


class HostFacilityMissing(HostError):
    """This host lacks what a VM needs: no KVM, or no capability of it."""

    exit_status = 69


class MachineLost(HostError):
    """A machine that has to end cannot be stopped: nothing is left but to end the process that holds it."""


class NotPermitted(HostError):
    """The facility is there, but this process may not use it."""

    exit_status = 77


class GuestError(VmmError):
    """The guest did something senseless; never leaves the device or loader that met it unless the operator chose the guest."""


class OutOfGuestMemory(GuestError):
    """An access to guest physical memory that is not there."""


class GuestNotResponding(VmmError):
    """The guest did not do its part of what a controller asked for, or not before something else ended that."""

    exit_status = 75


class CallerError(VmmError):
    """A controller asked for what cannot be done; nothing has changed."""


class InvalidStateTransition(CallerError):
    """The table of states forbids it."""


class InvalidArgument(CallerError):
    """The value asked for is out of range."""


class Busy(CallerError):
    """A conflicting operation is still under way."""


class NotSupported(CallerError):
    """This VM or this host cannot do it."""
