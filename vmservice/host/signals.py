"""The few signal calls that a VM makes before its guest runs.

From `_signal`, the C half of the standard module `signal`: the other half builds enumerations at import, which takes as long as
building the whole machine. Here and nowhere else.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes

SIGHUP: int = _signal.SIGHUP
SIGTERM: int = _signal.SIGTERM
SIGINT: int = _signal.SIGINT
SIGRTMIN: int = _signal.SIGRTMIN
SIGQUIT: int = _signal.SIGQUIT
SIGALRM: int = _signal.SIGALRM

# To be held back until somebody acts on them.
STOP_SIGNALS = (SIGTERM, SIGINT, SIGRTMIN + 4)


def stopping(*, managed: bool) -> tuple[int, ...]:
    """Those that stop the VM: SIGRTMIN+4 is `machinectl poweroff`. SIGINT under systemd is `machinectl reboot`, else Ctrl-C."""
    return (SIGTERM, SIGRTMIN + 4) if managed else STOP_SIGNALS


def block(*numbers: int) -> None:
    """Hold these signals back from the calling thread, and from threads that it starts; they wait."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, numbers)


def unblock(*numbers: int) -> None:
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, numbers)


def any_pending(*numbers: int) -> bool:
    """Whether one of these, which are blocked, has come and waits."""
    return not _signal.sigpending().isdisjoint(numbers)


def make_interrupting(number: int) -> None:
    """Let the signal end a system call with EINTR and do nothing else. For the main thread.

    Its handler is a function of the C library that has no effect. One of Python's would wake the event loop each time, and fill
    the socket by which that hears of all signals: a SIGTERM among thousands of kicks could be lost there.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(number, ctypes.cast(libc.abs, ctypes.c_void_p))
    libc.siginterrupt(number, 1)  # else the kernel would begin the call again (signal(7))


def send_to_thread(ident: int, number: int) -> None:
    """`ident` is what `_thread` calls the thread, which must not have ended."""
    _signal.pthread_kill(ident, number)


class Interrupting:
    """With this, a system call of the calling thread that waits is ended with EINTR after `seconds`, and again.

    The process's interval timer; SIGALRM must be `make_interrupting` and blocked in every other thread. For calls that wait
    with the interpreter's lock held, when no thread of ours could end them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        unblock(SIGALRM)
        _signal.setitimer(_signal.ITIMER_REAL, self._seconds, self._seconds)

    def __exit__(self, *_error: object) -> None:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
