"""Every error that vmservice raises on purpose, typed by who is to blame; and how its sentences show values.

The text of each is one sentence for a person: what is wrong, with the values, and what would be right. It never holds a
traceback or a path into our own sources. Anything that is not a `VmmError` is a bug of ours.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

# As a shell reports a command that SIGINT ended.
EXIT_INTERRUPTED = 130

_QUOTED_MAX_LENGTH = 60
PATH_SHOWN_MAX = 255  # a path of which half is missing helps nobody
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


class VmmError(Exception):
    """The root; `exit_status` follows sysexits(3) and is what `vmservice` exits with. The text is one line, and fit for a
    terminal: what no printer has is escaped, of names and values too."""

    exit_status = 70

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class UsageError(VmmError):
    """The command line is wrong."""

    exit_status = 64


class ConfigError(VmmError):
    """The operator's configuration, or a file that it names, is wrong."""

    exit_status = 78


class ConfigErrors(ConfigError):
    """Several of one configuration, `errors`; as a sentence it is the first one, and how many more there are."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        more = len(errors) - 1
        super().__init__(f"{errors[0]} (and {more} more {'mistake' if more == 1 else 'mistakes'})")
        self.errors = tuple(errors)


class FileError(ConfigError):
    """Of the file at `path`, a `what`; `fault` reads as what follows its name: `does not exist`."""

    def __init__(self, what: str, path: str, fault: str) -> None:
        super().__init__(f"the {what} {path} {fault}")
        self.path = path
        self.fault = fault


def raise_all(errors: Sequence[ConfigError]) -> None:
    """One as it is, several as ConfigErrors, nothing where there are none."""
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigErrors(errors)


def sentences(error: VmmError) -> list[str]:
    """All that it says, a line each."""
    return [str(one) for one in getattr(error, "errors", (error,))]


class Naming:
    """In this context each ConfigError has `place` in front, a configuration file, unless it has it already.

    `files` names others than `place`, by the key or the device that the error begins with: see `Config.files`.
    """

    def __init__(self, place: str, files: Mapping[str, str] | None = None) -> None:
        self._place = place
        self._files = files or {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, ConfigError):
            text = str(error)
            # The longest: a name in it may have spaces.
            begins = max((key for key in self._files if text.startswith((f"{key} ", f"{key}:"))), key=len, default="")
            place = self._files.get(begins, self._place)
            if place not in text:
                raise ConfigError(f"{place}: {text}") from error.__cause__


class NamingKey:
    """In this context each ConfigError has `key` in front, a key of the configuration, unless it has it already."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, FileError):
            raise ConfigError(f"{self._key} is {quoted(error.path, PATH_SHOWN_MAX)}, which {error.fault}") from error.__cause__
        if isinstance(error, ConfigError) and self._key not in str(error):
            raise ConfigError(f"{self._key}: {error}") from error.__cause__


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


def quoted(text: str, most: int = _QUOTED_MAX_LENGTH) -> str:
    """`text` as TOML writes a string and as a sentence can hold it: in quotes, bounded, one line without control characters."""
    shown = "".join(_ESCAPES.get(letter) or one_line(letter) for letter in text[:most])
    return f'"{shown}"' if len(text) <= most else f'"{shown}…"'


def one_line(text: str) -> str:
    """With what no printer has escaped: a name that somebody else chose cannot move a terminal's cursor."""
    return (
        text if text.isprintable() else "".join(letter if letter.isprintable() else f"\\u{ord(letter):04X}" for letter in text)
    )


def seconds(count: float) -> str:
    """`1 second`, `2 seconds`, `0.5 seconds`."""
    return f"{count:g} second" if count == 1 else f"{count:g} seconds"
