"""What the journal has of a VM: the VMM's own lines, systemd's about its unit, and the guest's.

It is read by systemd.journal.Reader (python3-systemd). What counts as a VM's is what its unit wrote, as journald itself notes:
anybody may write an entry with any VM_NAME. A guest's lines are somebody else's text: no byte of them steers a terminal.
"""

from __future__ import annotations

import glob
import os
import select
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host.consoles.text import printable

# Where journald keeps its files: systemd-journald.service(8).
SYSTEM_FILES = ("/var/log/journal/*/system.journal", "/run/log/journal/*/system.journal")

_SOURCE_LIMIT_CHARS = 80
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Line(NamedTuple):
    """`source` is a console's label, "vmservice", or "systemd"; `priority` is syslog(3)'s, None where the entry has none."""

    time: datetime
    source: str
    priority: int | None
    text: str

    def __str__(self) -> str:
        at = self.time
        return f"{_MONTHS[at.month - 1]} {at.day:02} {at:%H:%M:%S} {self.source}: {self.text}"


class VmJournal:
    """The entries of the VM called `name`, a unit of the user's own manager with `user`; `close` gives the files back."""

    def __init__(self, name: str, *, user: bool) -> None:
        """Raises HostFacilityMissing without python3-systemd, HostError where the journal cannot be opened."""
        self._name = name
        self._user = user
        try:
            from systemd import journal
        except ImportError:
            raise HostFacilityMissing("the journal cannot be read: python3-systemd is not installed") from None
        try:
            self._reader = journal.Reader(journal.LOCAL_ONLY)
        except OSError as error:
            raise HostError.from_os("cannot open the journal", error) from None

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> VmJournal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def last(self, count: int, *, guest: bool) -> list[Line]:
        """The last lines of the guest, or those of the VMM and of systemd about it; oldest first."""
        self._match(f"vm-{self._name}" if guest else "vmservice", systemd=not guest)
        return list(self._from_last(count))[-count:]

    def lines(self, count: int | None) -> Iterator[Line]:
        """Every line, or those of the last `count` entries."""
        self._match("", systemd=True)
        if count is not None:
            yield from self._from_last(count)
            return
        self._reader.seek_head()
        yield from self._following()

    def follow(self, count: int) -> Iterator[Line]:
        """The lines of the last `count` entries, and then each one as it comes, for ever."""
        self._match("", systemd=True)
        poll = select.poll()
        # First: libsystemd watches the journal's files from then on, and what comes while the others are read is not missed.
        poll.register(self._reader.fileno(), self._reader.get_events())
        yield from self._from_last(count)
        while True:
            timeout_ms = self._reader.get_timeout_ms()
            poll.poll(timeout_ms if timeout_ms >= 0 else None)
            self._reader.process()
            yield from self._following()

    # How it is done

    def _match(self, identifier: str, *, systemd: bool) -> None:
        """What the unit's processes wrote, with this SYSLOG_IDENTIFIER if one is given; and what `systemd` says of the unit."""
        unit = f"vm@{self._name}.service"
        reader = self._reader
        reader.flush_matches()
        ours = {"_SYSTEMD_USER_UNIT": unit, "_UID": str(os.getuid())} if self._user else {"_SYSTEMD_UNIT": unit}
        if identifier:
            ours["SYSLOG_IDENTIFIER"] = identifier
        reader.add_match(**ours)
        if systemd:
            managers = {"USER_UNIT": unit, "_UID": str(os.getuid())} if self._user else {"UNIT": unit, "_PID": "1"}
            reader.add_disjunction()
            reader.add_match(**managers)

    def _from_last(self, count: int) -> Iterator[Line]:
        """The lines of the last `count` entries; the reader is then behind the newest one."""
        self._reader.seek_tail()
        first = self._reader.get_previous(max(1, count))
        if not first:  # what comes is the first there is
            self._reader.seek_head()
        elif count:
            yield from _lines(first)
        yield from self._following()

    def _following(self) -> Iterator[Line]:
        while entry := self._reader.get_next():
            yield from _lines(entry)


def limited(lines_found: bool, *, user: bool) -> str | None:
    """The sentence for an account that does not see all that there may be, None for one that does.

    The lines of a VM of the user's own may lie in a file that its user can read.
    """
    files = [path for pattern in SYSTEM_FILES for path in glob.glob(pattern)]
    if not files:
        return None if lines_found else "this host keeps no journal"
    if all(os.access(path, os.R_OK) for path in files) or (user and lines_found):
        return None
    return "this account may not read all of the journal; root and members of group systemd-journal may"


def _lines(entry: Mapping[str, Any]) -> list[Line]:
    """An entry as lines; a traceback has several."""
    source = _shown(entry.get("VM_CONSOLE") or entry.get("SYSLOG_IDENTIFIER") or b"?")[0][:_SOURCE_LIMIT_CHARS]
    priority = entry.get("PRIORITY")
    known = priority if isinstance(priority, int) else None
    return [Line(entry["__REALTIME_TIMESTAMP"], source, known, text) for text in _shown(entry.get("MESSAGE", b""))]


def _shown(value: object) -> list[str]:
    """A field as lines that are safe to print. The reader gives text, bytes if that is no UTF-8, a list of several values."""
    first = value[0] if isinstance(value, list) else value
    data = first if isinstance(first, bytes) else str(first).encode("utf-8", "replace")
    return [printable(line) for line in data.split(b"\n")]
