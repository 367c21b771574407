"""The one table of D-Bus error names, and what a caller is told about an exception."""

from __future__ import annotations

from vmservice.control.names import INTERFACE
from vmservice.errors import Busy, GuestNotResponding, InvalidArgument, InvalidStateTransition, NotSupported, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAILED = f"{INTERFACE}.Error.Failed"

ERROR_NAMES: dict[type[VmmError], str] = {
    InvalidStateTransition: f"{INTERFACE}.Error.InvalidStateTransition",
    InvalidArgument: f"{INTERFACE}.Error.InvalidArgument",
    Busy: f"{INTERFACE}.Error.Busy",
    NotSupported: f"{INTERFACE}.Error.NotSupported",
    GuestNotResponding: f"{INTERFACE}.Error.GuestNotResponding",
}

# The D-Bus specification's own names, for calls that do not reach the VM.
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
UNKNOWN_OBJECT = "org.freedesktop.DBus.Error.UnknownObject"
UNKNOWN_INTERFACE = "org.freedesktop.DBus.Error.UnknownInterface"
UNKNOWN_PROPERTY = "org.freedesktop.DBus.Error.UnknownProperty"
PROPERTY_READ_ONLY = "org.freedesktop.DBus.Error.PropertyReadOnly"
INVALID_ARGS = "org.freedesktop.DBus.Error.InvalidArgs"
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
INTERACTION_REQUIRED = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"

OUR_BUG = "internal error; the journal has the details"
TEXT_LIMIT_CHARS = 2048


class BusFault(Exception):
    """A call that cannot be delivered: a D-Bus error `name` and the sentence for the caller."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def describe(error: Exception, log: Callable[[str], None]) -> tuple[str, str]:
    """The D-Bus error name and text for `error`. A bug of ours goes to `log` with its traceback, never to the caller."""
    if isinstance(error, BusFault):
        return error.name, wire_text(str(error))
    if isinstance(error, VmmError):
        name = next((name for kind, name in ERROR_NAMES.items() if isinstance(error, kind)), FAILED)
        return name, wire_text(str(error))
    import traceback

    log("".join(traceback.format_exception(error)).rstrip())
    return FAILED, OUR_BUG


def wire_text(text: str) -> str:
    """`text` as a D-Bus string may hold it: valid UTF-8 (a path may not be), no NUL, one line, of bounded length."""
    clean = text.encode("utf-8", "replace").decode().replace("\0", "?")
    line = " ".join(clean.split())
    return line if len(line) <= TEXT_LIMIT_CHARS else line[: TEXT_LIMIT_CHARS - 1] + "…"
