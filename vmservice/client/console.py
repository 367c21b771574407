"""`vmservice console NAME`: a person at the console of a VM that runs, for as long as they like, or a program by a pipe.

In its unit's RuntimeDirectory the VM keeps, for each console or port by its label, a link to its pseudoterminal in mode "pty",
or in mode "socket" the socket LABEL.sock. A socket that systemd holds for the serial console is in a directory of its own.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import termios

from vmservice.errors import HostError, HostFacilityMissing, NotPermitted, UsageError, quoted
from vmservice.host.consoles.socket import BUSY, socket_path
from vmservice.host.terminal import EscapeKeys, RawTerminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

LABELS = ("serial", "hvc")

_CHUNK_BYTES = 4096
_WAITING_LIMIT_BYTES = 4096
_PTS = "/dev/pts/"
_PTS_MAJORS = range(136, 144)  # Documentation/admin-guide/devices.txt: Unix98 PTY slaves
# How often the other end is told of our size, and looked at whether it is still there.
_PERIOD_MS = 200


def runtime_directory(name: str, *, user: bool) -> str:
    """Where the unit of the VM `name` has its RuntimeDirectory."""
    if not user:
        return f"/run/vmservice/{name}"
    return f"{os.environ.get('XDG_RUNTIME_DIR') or f'/run/user/{os.getuid()}'}/vmservice/{name}"


class NoConsole(HostFacilityMissing):
    """There is none to attach to: no such VM, or it does not run, or not with such a console. no_console.py says which."""


def attach(name: str, directory: str, label: str | None = None, *, input_fd: int = 0, output_fd: int = 1) -> None:
    """Join `input_fd` and `output_fd` to a console. From a terminal until the person leaves it or the VM goes; else as
    console_pipe.py says.

    `label` is serial, hvc or a port's name, None for the console that is there. What comes from the guest is passed on as it
    is. Raises UsageError, NoConsole, NotPermitted, and HostError when it is taken; what console_pipe.py raises, too.
    """
    for fd in (input_fd, output_fd):
        _check_open(fd)
    chosen, console = _open_console(name, directory, label)
    try:
        if os.isatty(input_fd):
            _attach_terminal(console, name, chosen, input_fd, output_fd)
        else:
            from vmservice.client.console_pipe import Pipe

            Pipe(console, f"the {chosen} console of {name}", input_fd, output_fd).run()
    finally:
        os.close(console)


def _attach_terminal(console: int, name: str, label: str, input_fd: int, output_fd: int) -> None:
    terminal = RawTerminal(input_fd, raw_output=True)
    if not terminal.is_ours():
        raise UsageError("console needs a terminal that it is in the foreground of")
    terminal.enter()
    jobs = _JobControl(terminal)
    try:
        _tell(f"vmservice: at the {label} console of {name}; Ctrl-] three times within a second leaves it\r")
        gone = _join(console, name, input_fd, output_fd)
    finally:
        jobs.close()
        terminal.leave()
    _tell(f"\nvmservice: {'the VM has closed the' if gone else 'left the'} {label} console of {name}")


def _check_open(fd: int) -> None:
    """What is opened next would take its place."""
    try:
        os.fstat(fd)
    except OSError:
        raise UsageError("console needs an open standard input and output; < /dev/null is an input that ends at once") from None


class _JobControl:
    """Stopped (SIGTSTP) and continued as any program: the terminal is itself again while we stop, and raw when we go on."""

    def __init__(self, terminal: RawTerminal) -> None:
        self._terminal = terminal
        self._before = {number: signal.getsignal(number) for number in (signal.SIGTSTP, signal.SIGCONT)}
        signal.signal(signal.SIGTSTP, self._on_stop)
        signal.signal(signal.SIGCONT, self._on_continue)

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self._terminal.leave()
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_kill(_thread.get_ident(), number)
        signal.signal(number, self._on_stop)
        self._take_terminal()

    def _on_continue(self, _number: int, _frame: FrameType | None) -> None:
        self._take_terminal()

    def _take_terminal(self) -> None:
        """Not from another job that has it; the next SIGCONT comes with the terminal."""
        if self._terminal.is_ours():
            self._terminal.enter()


def _open_console(name: str, directory: str, label: str | None) -> tuple[str, int]:
    """(label, descriptor) of the console, ours alone: two persons at one console would each get a part of what it says."""
    for candidate in (label,) if label is not None else LABELS:
        fd = -1
        if candidate == LABELS[0]:  # others than the VM's account may be let in there
            fd = _connect(f"{os.path.dirname(directory)}-console/{name}", name, trusted=True)
        if fd < 0:
            fd = _open_in(directory, name, candidate)
        if fd >= 0:
            return candidate, fd
    wanted = f"{label} console" if label is not None else "console"
    raise NoConsole(
        f'{name} has no {wanted} to attach to: it must run, with mode = "pty" or "socket" for it in its configuration'
    )


def _open_in(directory: str, name: str, label: str) -> int:
    """The console that the VM has under `label` in its directory; -1 if none."""
    try:
        owner = os.stat(directory).st_uid
        target = os.readlink(f"{directory}/{label}")
    except PermissionError:
        raise NotPermitted(f"no permission to look for the consoles of {name} in {directory}", errno.EACCES) from None
    except OSError:
        return _connect(socket_path(directory, label), name)
    return _open_pseudoterminal(target, name, owner)


def _connect(path: str, name: str, *, trusted: bool = False) -> int:
    """A connection to the socket at `path`; -1 if there is none. One in the VM's directory must be its account's own."""
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        raise NotPermitted(f"no permission to connect to {path}, a console of {name}", errno.EACCES) from None
    except OSError:
        return -1
    try:
        status = os.fstat(place)
        if not stat.S_ISSOCK(status.st_mode) or not (trusted or status.st_uid == os.stat(os.path.dirname(path)).st_uid):
            raise HostError(f"{path} is not the console of {name}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            # What was looked at, and nothing that has taken its place.
            connection.connect(f"/proc/self/fd/{place}")
            connection.setblocking(False)
            return connection.detach()
    except OSError as error:
        if isinstance(error, PermissionError):
            raise NotPermitted(f"no permission to connect to {path}, a console of {name}", errno.EACCES) from None
        raise HostError.from_os(f"cannot connect to {path}, a console of {name}", error) from None
    finally:
        os.close(place)


def _open_pseudoterminal(target: str, name: str, owner: int) -> int:
    """The link is the VM's, who is not trusted with what we open: a pseudoterminal of the VM's own account, or nothing."""
    if not (target.startswith(_PTS) and target.removeprefix(_PTS).isdecimal()):
        raise HostError(f"the console of {name} is said to be {quoted(target)}, which is no pseudoterminal")
    try:
        fd = os.open(target, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise HostError.from_os(f"cannot open {target}, the console of {name}", error) from None
    try:
        status = os.fstat(fd)
        is_pseudoterminal = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _PTS_MAJORS
        if not is_pseudoterminal or status.st_uid != owner:
            raise HostError(f"{target} is no longer the console of {name}")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError(f"somebody else is at the console of {name}", errno.EBUSY) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _join(console: int, name: str, input_fd: int, output_fd: int) -> bool:
    """Pass everything on both ways; whether it was the VM that ended it."""
    keys = EscapeKeys()
    is_socket = stat.S_ISSOCK(os.fstat(console).st_mode)
    is_first = True
    poll = select.poll()
    poll.register(input_fd, select.POLLIN)
    size = b""
    waiting = b""  # typed, and not yet taken by the VM
    while True:
        if not is_socket:
            size = _pass_size_on(input_fd, console, size)
        poll.register(console, select.POLLIN | (select.POLLOUT if waiting else 0))
        events = dict(poll.poll(_PERIOD_MS))
        if events.get(console, 0) & ~select.POLLOUT:
            shown = _read(console)
            if shown is None:
                return True
            if is_socket and is_first and shown == BUSY:
                raise HostError(f"somebody else is at the console of {name}", errno.EBUSY)
            is_first = False
            _write(output_fd, shown)
        if events.get(input_fd, 0):
            typed = _read(input_fd)
            if typed is None or keys.feed(typed):
                return False
            waiting = (waiting + typed)[:_WAITING_LIMIT_BYTES]
        if waiting:
            waiting = waiting[_write_some(console, waiting) :]


def _pass_size_on(terminal: int, console: int, before: bytes) -> bytes:
    """The VM's end learns how large our terminal is, and the guest at a virtio-console from that; the size as of now."""
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(struct.calcsize("4H")))
    if size != before:
        fcntl.ioctl(console, termios.TIOCSWINSZ, size)
    return size


def _read(fd: int) -> bytes | None:
    """What is there; None at the end, and from a terminal that was hung up."""
    try:
        return os.read(fd, _CHUNK_BYTES) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _write_some(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except OSError:  # full, or gone, which the next poll tells
        return 0


def _tell(text: str) -> None:
    """For a person, where one reads it."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
