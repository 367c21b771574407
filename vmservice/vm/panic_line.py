"""What a Linux kernel prints first when it panics, looked for in what its guest prints.

A guest without the driver of pvpanic tells nobody else, and one whose root disk is missing panics before it could load it. Any
program in a guest may print the same, so that nothing is done about it: it is for people to see.
"""

from __future__ import annotations

from vmservice.host.consoles.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# kernel/panic.c of Linux.
PHRASE = b"Kernel panic - not syncing: "
REASON_LIMIT_BYTES = 160
# In the unit's status, where `vmservice list` looks for it.
NOTICED = "its kernel has panicked, as its console says"


class PanicLine:
    """Stands before the console `write`. `tell` gets the reason that the first panic gives, in whichever thread prints it."""

    def __init__(self, write: Callable[[bytes], None], tell: Callable[[str], None]) -> None:
        self._write = write
        self._tell = tell
        self._seen = b""  # the end of what was printed, as much as may be the beginning of PHRASE; then what is behind it
        self._is_in_reason = self._is_done = False

    def write(self, data: bytes) -> None:
        self._write(data)
        if not self._is_done:
            self._look(self._seen + data)

    def _look(self, seen: bytes) -> None:
        if not self._is_in_reason:
            at = seen.find(PHRASE)
            if at < 0:
                self._seen = seen[1 - len(PHRASE) :]
                return
            self._is_in_reason = True
            seen = seen[at + len(PHRASE) :]
        self._seen = seen
        reason, end, _ = seen.partition(b"\n")
        if end or len(seen) >= REASON_LIMIT_BYTES:
            self._is_done = True
            self._tell(printable(reason[:REASON_LIMIT_BYTES].rstrip()))
