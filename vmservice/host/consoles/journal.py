"""A guest's console in the journal: bytes from the vCPU threads become lines, each an entry of its own.

What a guest may cost the host here has limits: the length of a line, and lines a second. journald's own limit of a unit's rate
would otherwise swallow the VMM's messages together with the guest's.
"""

from __future__ import annotations

import _thread
import time

from vmservice.host.consoles.base import PARTIAL_LINE_SEC, PENDING_LIMIT_BYTES, OutputConsole
from vmservice.host.consoles.text import printable
from vmservice.host.journal_socket import JournalSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.mover import Waits, Wakes

LINE_LIMIT_BYTES = 2048
LINES_PER_SEC = 1000
BURST_LINES = 10_000

# The word that journald itself uses for a line that it had to cut (systemd.journal-fields(7), _LINE_BREAK).
_BREAK_FIELD = "VM_LINE_BREAK"


class JournalConsole(OutputConsole):
    """Lines are cut and sent by the mover; the vCPU that prints leaves bytes, as many as PENDING_LIMIT_BYTES."""

    def __init__(self, vm_name: str, mover: Wakes, journal: JournalSocket | None = None, label: str = "serial") -> None:
        super().__init__(label)
        self._mover = mover
        self._journal = JournalSocket() if journal is None else journal
        self._fields = {
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": f"vm-{vm_name}",
            "VM_NAME": vm_name,
            "VM_CONSOLE": label,
        }
        self._lock = _thread.allocate_lock()  # for the next two, never held while anything is sent
        self._printed = bytearray()
        self._dropped = 0
        self._pending = bytearray()  # a line without its end
        self._pending_since = 0.0
        self._tokens = float(BURST_LINES)
        self._filled_at = time.monotonic()
        mover.add(self)

    def write(self, data: bytes) -> None:
        with self._lock:
            room = max(0, PENDING_LIMIT_BYTES - len(self._printed))
            if len(data) > room:
                self._dropped += data.count(b"\n", room)
                data = data[:room]
            needs_move = not self._printed or b"\n" in data
            self._printed += data
        if needs_move:
            self._mover.wake(self)

    def move(self) -> Waits:
        with self._lock:
            printed, self._printed = self._printed, bytearray()
        now = time.monotonic()
        if printed:
            if not self._pending:
                self._pending_since = now
            self._pending += printed
            *lines, rest = self._pending.split(b"\n")
            if lines:
                self._pending, self._pending_since = rest, now
                for line in lines:
                    self._emit_line(line)
            if len(self._pending) > LINE_LIMIT_BYTES:
                self._pending = self._emit_pieces(self._pending)
        if self._pending and now - self._pending_since >= PARTIAL_LINE_SEC:
            self._emit_rest("timeout")
        return [], self._pending_since + PARTIAL_LINE_SEC if self._pending else None

    def close(self) -> None:
        self._mover.remove(self)
        self.move()
        if self._pending:
            self._emit_rest("eof")
        if self._dropped:
            self._report_dropped()
        self._journal.close()

    # In the mover's thread

    def _emit_line(self, line: bytearray) -> None:
        self._emit(self._emit_pieces(line), "")

    def _emit_pieces(self, line: bytearray) -> bytearray:
        """Send all of `line` but the last LINE_LIMIT_BYTES or fewer, which are returned."""
        while len(line) > LINE_LIMIT_BYTES:
            end = LINE_LIMIT_BYTES
            while end > LINE_LIMIT_BYTES - 4 and line[end] & 0xC0 == 0x80:  # not in the middle of a UTF-8 character
                end -= 1
            self._emit(line[:end], "line-max")
            line = line[end:]
        return line

    def _emit_rest(self, why: str) -> None:
        rest, self._pending = self._pending, bytearray()
        self._emit(self._emit_pieces(rest), why)

    def _emit(self, line: bytearray, broken: str) -> None:
        if not self._take_token():
            self._drop()
            return
        if self._dropped:
            self._report_dropped()
        fields = {**self._fields, "MESSAGE": printable(bytes(line.strip(b"\r")))}
        if broken:
            fields[_BREAK_FIELD] = broken
        if not self._journal.send(fields):
            self._drop()

    def _take_token(self) -> bool:
        if self._tokens < 1:
            now = time.monotonic()
            self._tokens = min(float(BURST_LINES), self._tokens + (now - self._filled_at) * LINES_PER_SEC)
            self._filled_at = now
            if self._tokens < 1:
                return False
        self._tokens -= 1
        return True

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1

    def _report_dropped(self) -> None:
        dropped = self._dropped
        text = f"{dropped} lines of the console are missing here: the guest printed more than the journal takes"
        if self._journal.send({**self._fields, "PRIORITY": "4", "MESSAGE": text}):
            with self._lock:
                self._dropped -= dropped
