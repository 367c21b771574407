"""What the VMM says: to the journal with fields that a program can match, or to a person's terminal as a line.

The journal is written to by systemd-python, from the outbox's thread.
"""

from __future__ import annotations

import os
import stat
import time

from vmservice.host import signals
from vmservice.host.consoles.text import printable
from vmservice.host.journal_socket import JOURNAL_SOCKET, is_journal_stream
from vmservice.service import message_ids
from vmservice.service.outbox import Channel
from vmservice.vm.state import LastExit, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.service.outbox import Item, Outbox
    from vmservice.vm.vm import Changes, Vm

# syslog(3) priorities
ERROR = 3
WARNING = 4
NOTICE = 5
INFO = 6

MESSAGE_LIMIT_CHARS = 16 * 1024  # a traceback fits, and an entry of it fits a datagram

# What waits for a journald that reads nothing.
LIMIT_ENTRIES = 256
_LIMIT_CHARS = 1 << 20

# Longer than any send that finds room.
_WAIT_LIMIT_SEC = 0.02

# A guest may reset itself hundreds of times a second, and each one would be a line.
RESETS_BURST = 5
RESETS_PERIOD_SEC = 10.0

_LEVELS = {"err": ERROR, "warning": WARNING, "notice": NOTICE, "info": INFO}

_IDENTIFIER = "vmservice"
_STDERR = 2
_NULL_DEVICE = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt
_LOST: dict[object, tuple[int, str, str]] = {
    LastExit.PANIC: (ERROR, "the guest panicked", message_ids.GUEST_PANIC),
    LastExit.WATCHDOG: (WARNING, "the guest did not feed its watchdog", message_ids.GUEST_WATCHDOG),
}
_WORDS = {ERROR: "error: ", WARNING: "warning: "}


class Log:
    """The messages of the VM called `vm_name`: in the journal if standard error leads there or nowhere, else on that stream."""

    def __init__(
        self,
        vm_name: str,
        outbox: Outbox,
        stderr_fd: int = _STDERR,
        journal: str = JOURNAL_SOCKET,
        deliver: Callable[[Item], None] | None = None,
    ) -> None:
        self._vm_name = vm_name
        self._stderr_fd = stderr_fd
        leads_there = is_journal_stream(stderr_fd)
        self._is_journal = leads_there or _is_null_of_systemd(stderr_fd)
        self._channel: Channel | None = None
        # A container may have been given the stream alone.
        if self._is_journal and (not leads_there or os.path.exists(journal)):
            self._channel = Channel(
                journal,
                deliver if deliver is not None else _by_systemd,
                limit=LIMIT_ENTRIES,
                limit_chars=_LIMIT_CHARS,
                missing=self._missing,
            )
            outbox.add(self._channel)
        self._logged_state = State.CREATED
        self._lowest = INFO
        self._resets = self._unsaid_resets = 0
        self._resets_since = 0.0

    def limit(self, level: str) -> None:
        """Say nothing that matters less than `level`, one of config.LOG_LEVELS."""
        self._lowest = _LEVELS[level]

    def info(self, text: str) -> None:
        self.message(INFO, text)

    def warning(self, text: str) -> None:
        self.message(WARNING, text)

    def error(self, text: str) -> None:
        self.message(ERROR, text)

    def state(self, vm: Vm, changes: Changes | None = None) -> None:
        """Say the state that `vm` is in, if another one was said last; or that its guest was reset, if `changes` say so."""
        before, self._logged_state = self._logged_state, vm.state
        if vm.state == State.SHUTDOWN and vm.was_forced and vm.state is not before:
            self._transition(vm, WARNING, f"forced the VM to stop: {vm.last_detail}", message_ids.FORCED_STOP)
            return
        if changes is not None and changes.get("LastExit") in _LOST:
            self._guest_lost(vm)
            return
        if vm.state == State.RUNNING:
            if before == State.PAUSED:
                self._transition(vm, INFO, "VM resumed", message_ids.VM_RESUMED)
            elif before != State.RUNNING:
                self._transition(vm, INFO, "VM started", message_ids.VM_RUNNING)
            elif changes is not None and changes.get("LastExit") == LastExit.RESET:
                self._starts_anew(vm, NOTICE, _reset(vm), message_ids.GUEST_RESET)
        elif vm.state is before:
            return
        elif vm.state == State.PAUSED:
            by_reset = f"{_reset(vm)}; " if vm.paused_by == LastExit.RESET else ""
            self._transition(vm, INFO, f"{by_reset}VM paused", message_ids.VM_PAUSED)
        elif vm.last_exit == LastExit.ERROR:
            detail = f": {vm.last_detail}" if vm.last_detail else ""
            self._transition(vm, ERROR, f"the guest was stopped by an error{detail}", message_ids.GUEST_ERROR)
        else:
            by_reset = f"{_reset(vm)}; " if vm.last_exit == LastExit.RESET else ""
            self._transition(vm, INFO, f"{by_reset}VM shut down ({vm.last_exit})", message_ids.VM_SHUTDOWN)

    def bus_acquired(self) -> None:
        self.message(INFO, "D-Bus name acquired", message_ids.BUS_NAME_ACQUIRED)

    def bus_lost(self, text: str) -> None:
        self.message(WARNING, text, message_ids.BUS_NAME_LOST)

    def message(self, priority: int, text: str, message_id: str = "", **fields: str) -> None:
        """One message; `fields` are journal fields beside it, and for the journal only."""
        if priority > self._lowest:
            return
        if len(text) > MESSAGE_LIMIT_CHARS:
            text = text[: MESSAGE_LIMIT_CHARS - 1] + "…"
        if self._channel is None:
            self._print(priority, text)
            return
        entry = self._entry(priority, text)
        if message_id:
            entry["MESSAGE_ID"] = message_id
        self._channel.put({**entry, **fields})

    def _guest_lost(self, vm: Vm) -> None:
        """It panicked or hung; what became of the VM then is the state that it is in."""
        priority, what, message_id = _LOST[vm.last_exit]
        if vm.state == State.RUNNING:
            self._starts_anew(vm, priority, what, message_id)
        else:
            then = "paused" if vm.state == State.PAUSED else "shut down"
            self._transition(vm, priority, f"{what}; VM {then}", message_id)

    def _starts_anew(self, vm: Vm, priority: int, what: str, message_id: str) -> None:
        """At most RESETS_BURST lines in RESETS_PERIOD_SEC; the next one says how many were left out."""
        now = time.monotonic()
        if now - self._resets_since >= RESETS_PERIOD_SEC:
            self._resets, self._resets_since = 0, now
        self._resets += 1
        if self._resets > RESETS_BURST:
            self._unsaid_resets += 1
            return
        before = f", as {self._unsaid_resets} times before without a line here" if self._unsaid_resets else ""
        self._unsaid_resets = 0
        self._transition(vm, priority, f"{what}; it starts anew{before}", message_id)

    def _transition(self, vm: Vm, priority: int, text: str, message_id: str) -> None:
        self.message(priority, text, message_id, VM_STATE=vm.state, VM_LAST_EXIT=vm.last_exit)

    def print_left(self) -> None:
        """What the journal did not take before the outbox was closed, as lines on standard error."""
        for entry in self._channel.take_left() if self._channel is not None else ():
            self._print(int(entry["PRIORITY"]), entry["MESSAGE"])

    def _entry(self, priority: int, text: str) -> Item:
        return {"MESSAGE": text, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": _IDENTIFIER, "VM_NAME": self._vm_name}

    def _missing(self, count: int) -> Item:
        return self._entry(WARNING, f"{count} messages are missing here: the journal did not take them in time")

    def _print(self, priority: int, text: str) -> None:
        """A line for a person; on the journal's stream with the prefix of sd-daemon(3), journald's hint at the priority."""
        start = f"<{priority}>" if self._is_journal else f"vmservice: {self._vm_name}: {_WORDS.get(priority, '')}"
        lines = [printable(line) for line in text.encode("utf-8", "replace").split(b"\n")]
        _write_without_waiting(self._stderr_fd, "".join(f"{start}{line}\n" for line in lines).encode())


def _reset(vm: Vm) -> str:
    return f"the guest was reset: {vm.last_detail}" if vm.last_detail else "the guest was reset"


def _by_systemd(entry: Item) -> None:
    from systemd.journal import sendv

    fields = [f"{name}={value}".encode("utf-8", "replace") for name, value in entry.items()]
    with signals.Interrupting(_WAIT_LIMIT_SEC):
        sendv(*fields)


def _is_null_of_systemd(fd: int) -> bool:
    """Whether `fd` is /dev/null, and systemd's doing: what a service gets that is started while journald is away."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return "INVOCATION_ID" in os.environ and stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE


def _write_without_waiting(fd: int, data: bytes) -> None:
    """Write what a terminal, pipe or stream takes now: a person who holds the terminal with Ctrl-S does not hold the VM."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    chunk = select.PIPE_BUF
    while data:
        try:
            if not poll.poll(0):
                return
            data = data[os.write(fd, data[:chunk]) :]
        except OSError:
            return
