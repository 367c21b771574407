"""`vmservice logs`, and the last lines that `vmservice status` shows."""

from __future__ import annotations

import os
import sys

from vmservice.client.journal import Line, VmJournal, limited
from vmservice.errors import HostError

_LAST_LINES = 5


def show_logs(name: str, *, user: bool, count: int | None, follow: bool) -> int:
    """Print the lines of a VM, all or of the last `count` entries, and with `follow` each new one, until interrupted."""
    found = False
    with VmJournal(name, user=user) as journal:
        if follow and (sentence := limited(True, user=user)):
            _say(sentence)
        for line in journal.follow(count or 0) if follow else journal.lines(count):
            found = True
            print(line, flush=follow)
    if not follow and (sentence := limited(found, user=user)):
        _say(sentence)
    elif not found:
        from vmservice.client.vms import near_name

        _say(f"the journal has no line of vm@{name}.service{near_name(name, user=user)}")
    return os.EX_OK


class LastLines:
    """The last lines of the VMM (with systemd's) and of the guest; `note` says why there are none, or not all."""

    def __init__(self, name: str, *, user: bool) -> None:
        self.vmm: list[Line] = []
        self.guest: list[Line] = []
        try:
            with VmJournal(name, user=user) as journal:
                self.vmm = journal.last(_LAST_LINES, guest=False)
                self.guest = journal.last(_LAST_LINES, guest=True)
        except HostError as error:
            self.note: str | None = str(error)
        else:
            self.note = limited(bool(self.vmm or self.guest), user=user)

    def as_text(self) -> str:
        """Blocks to be printed below a VM's facts, each after an empty line."""
        blocks = [(who, lines) for who, lines in (("VMM", self.vmm), ("guest", self.guest)) if lines]
        return "".join(f"\nLast lines of the {who}:\n" + "".join(f"  {line}\n" for line in lines) for who, lines in blocks)

    def as_list(self) -> list[dict[str, object]]:
        """For programs, in the order of time."""
        lines = sorted((*self.vmm, *self.guest), key=lambda line: line.time)
        return [
            {"time": line.time.astimezone().isoformat(), "source": line.source, "priority": line.priority, "text": line.text}
            for line in lines
        ]


def _say(text: str) -> None:
    print(f"vmservice: {text}", file=sys.stderr)
