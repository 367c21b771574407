"""A journal in memory, with as much of systemd.journal as is used: sd_journal_add_match(3) and the cursor's movements."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

LOCAL_ONLY = 1
BEGIN = datetime(2026, 11, 27, 2, 0, 5)


class FakeJournal:
    """`add` appends an entry, a second after the one before; `readers` are those that are open.

    `at_end` is called whenever one of them has found no more.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries: list[dict[str, Any]] = []
        self.readers: list[Reader] = []
        self.refusal: OSError | None = None
        self.at_end: Callable[[], None] = lambda: None
        module = types.SimpleNamespace(LOCAL_ONLY=LOCAL_ONLY, Reader=self._open)
        monkeypatch.setitem(sys.modules, "systemd", types.SimpleNamespace(journal=module))
        monkeypatch.setattr("vmservice.client.journal.SYSTEM_FILES", ("/dev/null",))

    def add(self, message: object, **fields: object) -> None:
        at = BEGIN + timedelta(seconds=len(self.entries))
        self.entries.append({"MESSAGE": message, **fields, "__REALTIME_TIMESTAMP": at})
        for reader in self.readers:
            if reader.is_watching:
                os.eventfd_write(reader.fd, 1)

    def vmm(self, text: object, name: str = "demo", **fields: object) -> None:
        self.add(text, _SYSTEMD_UNIT=f"vm@{name}.service", SYSLOG_IDENTIFIER="vmservice", VM_NAME=name, PRIORITY=6, **fields)

    def guest(self, text: object, name: str = "demo", console: str = "serial") -> None:
        unit = f"vm@{name}.service"
        self.add(text, _SYSTEMD_UNIT=unit, SYSLOG_IDENTIFIER=f"vm-{name}", VM_NAME=name, VM_CONSOLE=console, PRIORITY=6)

    def _open(self, flags: int) -> Reader:
        assert flags == LOCAL_ONLY
        if self.refusal is not None:
            raise self.refusal
        return Reader(self)


class Reader:
    def __init__(self, journal: FakeJournal) -> None:
        self._journal = journal
        self._terms: list[dict[str, str]] = [{}]
        self._position = -1  # of the entry that was read last
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_watching = False  # from sd_journal_get_fd(3) on
        journal.readers.append(self)

    def close(self) -> None:
        self._journal.readers.remove(self)
        os.close(self.fd)

    def flush_matches(self) -> None:
        self._terms = [{}]

    def add_match(self, **fields: str) -> None:
        self._terms[-1].update(fields)

    def add_disjunction(self) -> None:
        self._terms.append({})

    def seek_head(self) -> None:
        self._position = -1

    def seek_tail(self) -> None:
        self._position = len(self._journal.entries)

    def get_next(self) -> dict[str, Any]:
        entry = self._move(range(self._position + 1, len(self._journal.entries)), 1)
        if not entry:
            self._journal.at_end()
        return entry

    def get_previous(self, skip: int) -> dict[str, Any]:
        return self._move(range(self._position - 1, -1, -1), skip)

    def _move(self, way: range, skip: int) -> dict[str, Any]:
        """As far as there are entries that match, `skip` at most."""
        found = [position for position in way if self._fits(self._journal.entries[position])][:skip]
        if not found:
            return {}
        self._position = found[-1]
        return self._journal.entries[self._position]

    def _fits(self, entry: dict[str, Any]) -> bool:
        return any(all(entry.get(name) == value for name, value in term.items()) for term in self._terms)

    def fileno(self) -> int:
        self.is_watching = True
        return self.fd

    def get_events(self) -> int:
        return 1

    def get_timeout_ms(self) -> int:
        return -1

    def process(self) -> None:
        os.eventfd_read(self.fd)
