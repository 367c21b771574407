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
# After so many the other consoles have their turn.
SLICE_LINES = 500
_REST_SEC = 0.1

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
        self._lock = _thread.allocate_lock()  # for the next three, never held while anything is sent
        self._printed = bytearray()
        self._overflowed = 0  # lines that were printed behind those and are lost
        self._is_resting = False  # the mover comes back by itself
        self._chunk = b""  # what is being cut, from `_at` on
        self._at = 0
        self._pending = bytearray()  # the beginning of the next line
        self._pending_since = 0.0
        self._was_broken = False  # of the line that is under way, the journal has the beginning
        self._dropped = 0
        self._overflowed_behind = 0  # behind `_chunk`
        self._tokens = float(BURST_LINES)
        self._filled_at = time.monotonic()
        mover.add(self)

    def write(self, data: bytes) -> None:
        with self._lock:
            needs_move = not self._printed and not self._is_resting
            room = max(0, PENDING_LIMIT_BYTES - len(self._printed))
            if len(data) > room:
                self._overflowed += max(1, data.count(b"\n", room))
                data = data[:room]
            self._printed += data
        if needs_move:
            self._mover.wake(self)

    def move(self) -> Waits:
        """A slice of lines. A guest that has used up its lines is looked after every _REST_SEC, whatever it prints."""
        now = time.monotonic()
        if self._at == len(self._chunk):
            self._take_chunk()
        if self._at < len(self._chunk):
            if not self._pending:
                self._pending_since = now
            self._cut_lines(now)
        if self._at < len(self._chunk):
            return [], now
        if self._overflowed_behind:
            self._end_at_gap()
        if self._pending and now - self._pending_since >= PARTIAL_LINE_SEC:
            self._emit_rest("timeout")
            self._was_broken = True
        return [], self._due(now)

    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "journal"}

    def close(self) -> None:
        self._mover.remove(self)
        while self._printed or self._at < len(self._chunk):
            self.move()
        if self._pending:
            self._emit_rest("eof")
        if self._dropped:
            self._report_dropped()
        self._journal.close()

    # In the mover's thread

    def _take_chunk(self) -> None:
        with self._lock:
            self._chunk, self._at = bytes(self._printed), 0
            self._printed.clear()
            self._overflowed_behind, self._overflowed = self._overflowed, 0
            self._is_resting = False

    def _cut_lines(self, now: float) -> None:
        """Send SLICE_LINES at most. Those past the rate are counted, not cut, so that a flood keeps nobody from running."""
        chunk = self._chunk
        for _ in range(SLICE_LINES):
            end = chunk.find(b"\n", self._at)
            if end < 0:
                break
            if not self._has_token():
                self._dropped += chunk.count(b"\n", self._at)
                self._pending.clear()
                self._at = chunk.rfind(b"\n") + 1
                break
            line = self._pending + chunk[self._at : end]
            self._pending, self._pending_since, self._at = bytearray(), now, end + 1
            was_broken, self._was_broken = self._was_broken, False
            if not was_broken or line.strip(b"\r"):  # the end alone is no line
                self._emit_line(line)
        else:
            return
        self._pending += chunk[self._at :]
        self._at = len(chunk)
        if len(self._pending) > LINE_LIMIT_BYTES:
            self._pending = self._emit_pieces(self._pending)

    def _end_at_gap(self) -> None:
        """What is lost came next: the line before it has no end, and the next one no beginning."""
        if self._pending:
            self._emit_rest("line-max")
        self._dropped += self._overflowed_behind
        self._overflowed_behind = 0

    def _due(self, now: float) -> float | None:
        if not self._has_token():
            with self._lock:
                self._is_resting = True
            return now + _REST_SEC
        if self._dropped:
            self._report_dropped()
        with self._lock:
            if self._printed:  # while the chunk was cut, slice by slice
                return now
        return self._pending_since + PARTIAL_LINE_SEC if self._pending else None

    def _emit_line(self, line: bytearray) -> None:
        self._emit(self._emit_pieces(line), "")

    def _emit_pieces(self, line: bytearray) -> bytearray:
        """Send all of `line` but the last LINE_LIMIT_BYTES or fewer, which are returned."""
        start = 0
        while len(line) - start > LINE_LIMIT_BYTES:
            end = start + LINE_LIMIT_BYTES
            while end > start + LINE_LIMIT_BYTES - 4 and line[end] & 0xC0 == 0x80:  # not inside a UTF-8 character
                end -= 1
            self._emit(line[start:end], "line-max")
            start = end
        return line[start:]

    def _emit_rest(self, why: str) -> None:
        rest, self._pending = self._pending, bytearray()
        self._emit(self._emit_pieces(rest), why)

    def _emit(self, line: bytearray, broken: str) -> None:
        if not self._has_token():
            self._dropped += 1
            return
        self._tokens -= 1
        if self._dropped:
            self._report_dropped()
        fields = {**self._fields, "MESSAGE": printable(bytes(line.strip(b"\r")))}
        if broken:
            fields[_BREAK_FIELD] = broken
        if not self._journal.send(fields):
            self._dropped += 1

    def _has_token(self) -> bool:
        if self._tokens < 1:
            now = time.monotonic()
            self._tokens = min(float(BURST_LINES), self._tokens + (now - self._filled_at) * LINES_PER_SEC)
            self._filled_at = now
        return self._tokens >= 1

    def _report_dropped(self) -> None:
        text = f"{self._dropped} lines of the console are missing here: the guest printed more than the journal takes"
        if self._journal.send({**self._fields, "PRIORITY": "4", "MESSAGE": text}):
            self._dropped = 0
