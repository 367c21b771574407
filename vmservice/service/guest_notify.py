"""What the guest's service manager says, from bytes to fields: sd_notify(3), and systemd(1) on `vmm.notify_socket`.

A guest may say anything: every value is bounded, printable, and of its type, or it is not there.
"""

from __future__ import annotations

from vmservice.host.consoles.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# systemd itself reads no longer message of a service (NOTIFY_BUFFER_MAX, PIPE_BUF).
MESSAGE_MAX_BYTES = 4096
STATUS_MAX_CHARS = 200
VALUE_MAX_CHARS = 256
FIELDS_MAX = 16
_NAME_MAX_LENGTH = 64  # of a field in the journal

# Those that systemd means for whoever runs the machine: X_SYSTEMD_UNIT_ACTIVE= and so on.
_PREFIX = "X_SYSTEMD_"
_FIELD_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_GOES_DOWN = "X_SYSTEMD_SHUTDOWN"
_EXIT_STATUS_MAX = 255


class GuestMessage:
    """One message. `status` and `exit_status` are None where it has none; `fields` are those for the journal, by name."""

    __slots__ = ("exit_status", "fields", "goes_down", "is_ready", "status")

    def __init__(
        self,
        *,
        is_ready: bool = False,
        goes_down: bool = False,
        status: str | None = None,
        exit_status: int | None = None,
        fields: dict[str, str] | None = None,
    ) -> None:
        self.is_ready: Final = is_ready
        self.goes_down: Final = goes_down
        self.status: Final = status
        self.exit_status: Final = exit_status
        self.fields: Final = fields or {}


def parse(data: bytes) -> GuestMessage:
    """The message in `data`; what is wrong or unknown in it is as if it were not there. The last one of a name counts."""
    values: dict[str, str] = {}
    for line in data[:MESSAGE_MAX_BYTES].split(b"\n"):
        name, equals, value = line.partition(b"=")
        if equals and name.isascii():
            values[name.decode()] = printable(value)
    status = values.get("STATUS")
    exit_status = values.get("EXIT_STATUS", "")
    is_number = exit_status.isascii() and exit_status.isdecimal() and len(exit_status) <= len(str(_EXIT_STATUS_MAX))
    fields = {name: value[:VALUE_MAX_CHARS] for name, value in values.items() if _is_field(name)}
    return GuestMessage(
        is_ready=values.get("READY") == "1",
        goes_down=values.get("STOPPING") == "1" or _GOES_DOWN in fields,
        status=None if status is None else status[:STATUS_MAX_CHARS],
        exit_status=int(exit_status) if is_number and int(exit_status) <= _EXIT_STATUS_MAX else None,
        fields=dict(list(fields.items())[:FIELDS_MAX]),
    )


def _is_field(name: str) -> bool:
    return name.startswith(_PREFIX) and len(name) <= _NAME_MAX_LENGTH and _FIELD_CHARS.issuperset(name)
