"""sd_notify(3) without libsystemd: one datagram to the socket in $NOTIFY_SOCKET, and never a wait for it.

libsystemd's own call blocks while the service manager does not read its socket, and python3-systemd raises if the socket is
gone; a VM must stand neither.
"""

from __future__ import annotations

import _socket  # not `socket`, which costs milliseconds before the guest runs
import _thread
import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# systemd reads at most PIPE_BUF (4096) bytes a datagram and drops a longer one whole: NOTIFY_BUFFER_MAX in src/core/manager.c.
_VALUE_LIMIT_BYTES = 1024
_USEC_PER_SEC = 1_000_000


class Notifier:
    """Tells the service manager how the VM does; does nothing where there is none.

    A message that the manager's full socket does not take is sent with the next one. `log` gets one sentence when the socket
    first fails.
    """

    def __init__(self, log: Callable[[str], None], address: str | None = None) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "") if address is None else address
        self._log = log
        self._socket: _socket.socket | None = None
        self._unsent: dict[str, str] = {}
        self._told = False
        self._mutex = _thread.allocate_lock()  # the watchdog has a thread of its own
        if self._address and self._address[0] not in "/@":
            self._fail(f"NOTIFY_SOCKET={self._address} is neither a path nor an abstract unix socket")
            self._address = ""

    @property
    def active(self) -> bool:
        """Whether a service manager asked to be told."""
        return bool(self._address)

    def notify(self, **fields: str | int) -> bool:
        """Send `FIELD=value` lines; a newline in a value becomes a space. True when the manager has them."""
        if not self._address:
            return False
        with self._mutex:
            return self._send(fields)

    def _send(self, fields: dict[str, str | int]) -> bool:
        lines = {**self._unsent, **{name: _one_line(str(value)) for name, value in fields.items()}}
        datagram = "\n".join(f"{name}={value}" for name, value in lines.items()).encode("utf-8", "replace")
        try:
            if self._socket is None:
                self._socket = _socket.socket(
                    _socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
                )
            self._socket.sendto(datagram, _socket.MSG_NOSIGNAL, _sockaddr(self._address))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS):
                self._unsent = lines
            self._fail(f"the service manager at {self._address} cannot be told {', '.join(lines)}: {error.strerror or error}")
            return False
        self._unsent = {}
        return True

    def ready(self, status: str) -> bool:
        return self.notify(READY=1, STATUS=status)

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self.notify(STATUS=text)

    def reloading(self) -> bool:
        """The configuration is being read again; `ready` ends it. systemd 253 and later wait for that, and want the time."""
        return self.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self) -> bool:
        return self.notify(STOPPING=1)

    def extend_timeout(self, seconds: float) -> bool:
        """Start, stop or run time may last `seconds` from now; to be repeated before they are over."""
        return self.notify(EXTEND_TIMEOUT_USEC=max(0, round(seconds * _USEC_PER_SEC)))

    def failed(self, status: str, number: int = 0) -> bool:
        """The service is about to end; `number` is the errno that it fails with, 0 where there is none."""
        return self.notify(STATUS=status, **({"ERRNO": number} if number else {}))

    def watchdog(self) -> bool:
        return self.notify(WATCHDOG=1)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _fail(self, sentence: str) -> None:
        if not self._told:
            self._told = True
            self._log(sentence)


def watchdog_sec() -> float | None:
    """How often the manager's watchdog wants a sign of life, or None: $WATCHDOG_USEC, if $WATCHDOG_PID means this process."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdecimal() or pid != str(os.getpid()) or int(usec) == 0:
        return None
    return int(usec) / _USEC_PER_SEC


def _sockaddr(address: str) -> str | bytes:
    return b"\0" + os.fsencode(address[1:]) if address[0] == "@" else address


def _one_line(value: str) -> str:
    line = value.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
    return line[:_VALUE_LIMIT_BYTES].decode("utf-8", "ignore")
