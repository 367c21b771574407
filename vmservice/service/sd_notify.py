"""What the service manager is told, after sd_notify(3): by systemd-python, from the outbox's thread."""

from __future__ import annotations

import os
import time

from vmservice.host import signals
from vmservice.service.outbox import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.service.outbox import Item, Outbox

# systemd reads at most PIPE_BUF (4096) bytes a datagram and drops a longer one whole: NOTIFY_BUFFER_MAX in src/core/manager.c.
_VALUE_LIMIT_BYTES = 1024
_USEC_PER_SEC = 1_000_000

# What waits is a word for each turn in the unit's life, and one message with the newest of all the rest.
_LIMIT_MESSAGES = 64
_LIMIT_CHARS = 64 * 1024
_TURNS = ("READY", "RELOADING", "STOPPING")

# Longer than any send that finds room.
_WAIT_LIMIT_SEC = 0.02


class Notifier:
    """Tells the service manager how the VM does; does nothing where there is none. Every method is for any thread.

    While the manager reads nothing, messages wait: the newest status, and each turn in its order. `log` gets one sentence when
    a message first has to wait.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        outbox: Outbox,
        address: str | None = None,
        deliver: Callable[[Item], None] | None = None,
    ) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._log = log
        if self._address and self._address[0] not in "/@":
            log(f"NOTIFY_SOCKET={self._address} is neither a path nor an abstract unix socket")
            self._address = ""
        self._channel = Channel(
            self._address,
            deliver if deliver is not None else _by_systemd,
            limit=_LIMIT_MESSAGES,
            limit_chars=_LIMIT_CHARS,
            merge=_merged,
            on_trouble=self._on_trouble,
            settle=_wait_heard,
        )
        if self._address:
            outbox.add(self._channel)

    @property
    def active(self) -> bool:
        """Whether a service manager asked to be told."""
        return bool(self._address)

    def notify(self, **fields: str | int) -> None:
        """Send `FIELD=value` lines; a newline in a value becomes a space."""
        if self._address:
            self._channel.put({name: _one_line(str(value)) for name, value in fields.items()})

    def ready(self, status: str) -> None:
        self.notify(READY=1, STATUS=status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self.notify(STATUS=text)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it. systemd 253 and later wait for that, and want the time."""
        self.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self) -> None:
        self.notify(STOPPING=1)

    def extend_timeout(self, seconds: float) -> None:
        """Start, stop or run time may last `seconds` from now; to be repeated before they are over."""
        self.notify(EXTEND_TIMEOUT_USEC=max(0, round(seconds * _USEC_PER_SEC)))

    def failed(self, status: str, number: int = 0) -> None:
        """The service is about to end; `number` is the errno that it fails with, 0 where there is none."""
        self.notify(STATUS=status, **({"ERRNO": number} if number else {}))

    def watchdog(self) -> None:
        self.notify(WATCHDOG=1)

    def _on_trouble(self, fields: Item, why: str) -> None:
        self._log(f"the service manager at {self._address} cannot be told {', '.join(fields)}: {why}")


def watchdog_sec() -> float | None:
    """How often the manager's watchdog wants a sign of life, or None: $WATCHDOG_USEC, if $WATCHDOG_PID means this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdecimal() or pid != str(os.getpid()) or int(usec) == 0:
        return None
    return int(usec) / _USEC_PER_SEC


def _by_systemd(fields: Item) -> None:
    from systemd.daemon import notify

    with signals.Interrupting(_WAIT_LIMIT_SEC):
        notify("\n".join(f"{name}={value}" for name, value in fields.items()))


def _wait_heard(timeout_sec: float) -> None:
    """The process is about to end. The manager may reap it before it has read its last status, when it is about to reap another
    (waitid with P_ALL in src/core/manager.c): it then finds no unit for that."""
    from systemd.daemon import notify

    def tell(text: str, fds: Sequence[int]) -> None:
        with signals.Interrupting(_WAIT_LIMIT_SEC):
            notify(text, fds=fds)

    try:
        wait_read(tell, timeout_sec)
    except OSError:  # it is gone, or takes nothing
        return


def wait_read(tell: Callable[[str, Sequence[int]], object], timeout_sec: float) -> None:
    """Until the manager has read all that was said before, as sd_notify_barrier(3) does: it closes what `tell` sends."""
    import select

    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        tell("BARRIER=1", [theirs])
        os.close(theirs)
        theirs = -1
        select.select([ours], [], [], timeout_sec)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _merged(last: Item, fields: Item) -> Item | None:
    if any(turn in fields or turn in last for turn in _TURNS):
        return None
    return {**last, **fields}


def _one_line(value: str) -> str:
    line = value.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
    return line[:_VALUE_LIMIT_BYTES].decode("utf-8", "ignore")
