"""A vCPU's thread: it runs the guest, hands exits to the board, and stops when told.

The kick protocol, which loses nothing and holds no lock while anybody waits:

* `request_stop` sets `immediate_exit` and `_wanted` together under `_mutex`, then sends the signal. A thread in the guest
  comes out by the signal; one that is about to enter comes straight out by `immediate_exit`; one that handles an exit
  finds `_wanted` afterwards. `ask` does the same for a mere sign of life, after which the thread goes on.
  `look` too: what it wants to see of the vCPU is looked at by the thread itself, out of the guest.
* The thread clears `immediate_exit` *before* it acknowledges, so a later request is never wiped out.
* It then waits for `release`. A request may also be taken back by `release` before the thread has noticed it.
"""

from __future__ import annotations

import _thread
import ctypes
import sys

from vmservice.errors import VmmError
from vmservice.host import signals
from vmservice.kvm import abi
from vmservice.kvm.exits import describe
from vmservice.kvm.vcpu import INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.kvm.vcpu import KvmVcpu

    # Handles one exit of a vCPU; False when the guest is to run no further (it powered off, it reset, it failed).
    ExitHandler = Callable[[KvmVcpu, int], bool]
    # Told of an error that ended the thread's guest.
    FaultHandler = Callable[[Exception], None]

    # Takes of a vCPU that is out of the guest what a person wants to see of it: a few ioctls long.
    Look = Callable[[KvmVcpu], list[str]]

KICK_SIGNAL = signals.SIGRTMIN

_PR_SET_NAME = 15  # <linux/prctl.h>
_libc = ctypes.CDLL(None)


def install_kick_handler() -> None:
    """Let the kick signal interrupt KVM_RUN and do nothing else. For the main thread, once, before any vCPU runs."""
    signals.make_interrupting(KICK_SIGNAL)


class VcpuThread:
    """Runs `vcpu` from `start` on until `finish`. Methods are for the main thread; `ask`, `answered` and `look` are for any."""

    def __init__(self, vcpu: KvmVcpu, handle_exit: ExitHandler, on_fault: FaultHandler) -> None:
        self.vcpu = vcpu
        self._handle_exit = handle_exit
        self._on_fault = on_fault
        self._mutex = _thread.allocate_lock()  # guards the flags below, for a few instructions at a time
        self._wanted = False  # somebody wants the thread to hold
        self._done = False  # the guest is to run no further
        self._holding = False  # the thread has stopped and acknowledged
        self._quit = False  # the thread is to end
        self._asked = False  # somebody waits for a sign of life
        self._sights: list[Sight] = []  # what is to be looked at when the thread is out of the guest
        self._acknowledged = _locked()
        self._go = _locked()
        self._ended = _locked()
        self._ident = 0

    def start(self) -> None:
        self._ident = _thread.start_new_thread(self._main, ())

    def request_stop(self) -> None:
        """Ask the thread to leave the guest and hold; `wait_stopped` tells when it does."""
        with self._mutex:
            self.vcpu.set_immediate_exit(1)
            self._wanted = True
        # The thread cannot have ended: only `finish` lets it, after the thread holds.
        signals.send_to_thread(self._ident, KICK_SIGNAL)

    def wait_stopped(self, timeout_sec: float) -> bool:
        """Whether the thread holds, waiting up to `timeout_sec`; at once if it held already."""
        with self._mutex:
            if self._holding:
                self._acknowledged.acquire(blocking=False)
                return True
        return self._acknowledged.acquire(timeout=timeout_sec)

    def release(self) -> None:
        """Let the thread go on, or take a request back that it has not noticed yet."""
        with self._mutex:
            self._wanted = False
            if self._holding:
                self._holding = False
                self._acknowledged.acquire(blocking=False)
                self._go.release()

    def ask(self) -> None:
        """Let the thread show that it lives: it leaves the guest for a moment. One that holds shows it by that."""
        with self._mutex:
            if self._holding or self._quit:
                return
            self._asked = True
            self.vcpu.set_immediate_exit(1)
            # While the mutex is held a thread that does not hold cannot come to its end.
            signals.send_to_thread(self._ident, KICK_SIGNAL)

    @property
    def answered(self) -> bool:
        """Whether the thread has given a sign of life since the last `ask`."""
        with self._mutex:
            return self._holding or self._quit or not self._asked

    def look(self, look: Look) -> Sight:
        """Have the vCPU looked at, by its own thread as soon as that is out of the guest, and at once where it holds."""
        sight = Sight(look)
        with self._mutex:
            if self._holding or self._quit:
                sight.take(self.vcpu)
            else:
                self._sights.append(sight)
                self.vcpu.set_immediate_exit(1)
                # While the mutex is held a thread that does not hold cannot come to its end.
                signals.send_to_thread(self._ident, KICK_SIGNAL)
        return sight

    def whereabouts(self) -> str:
        """Where in this program the thread is, in words: for one that does not do what it is asked."""
        frame = sys._current_frames().get(self._ident)
        if frame is None:
            return "it has no thread"
        return f"its thread is in {frame.f_globals.get('__name__')}, {frame.f_code.co_name}(), line {frame.f_lineno}"

    def finish(self) -> None:
        """End the thread, which must hold; returns when it has ended."""
        with self._mutex:
            self._quit = True
        self.release()
        self._ended.acquire()

    def _main(self) -> None:
        _libc.prctl(_PR_SET_NAME, f"vcpu{self.vcpu.index}".encode(), 0, 0, 0)
        try:
            self._run()
        finally:
            self._ended.release()

    def _run(self) -> None:
        vcpu, run, handle_exit = self.vcpu, self.vcpu.run, self._handle_exit
        while not self._quit:
            if self._wanted or self._done:
                self._hold()
                continue
            try:
                reason = run()
                if reason == INTERRUPTED:
                    self._hold()
                elif not handle_exit(vcpu, reason):
                    self._done = True
            except Exception as error:  # a thread's top: whatever went wrong ends this guest, not the process
                self._done = True
                self._on_fault(error)

    def _hold(self) -> None:
        """Acknowledge a request and wait for `release`; returns at once when there is no request (any more)."""
        with self._mutex:
            self.vcpu.set_immediate_exit(0)
            self._asked = False
            while self._sights:
                self._sights.pop().take(self.vcpu)
            if not (self._wanted or self._done):
                return
            self._holding = True
            self._acknowledged.release()
        self._go.acquire()


class Sight:
    """What `look` made of a vCPU, once it has been taken."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._lines: list[str] = []
        self._taken = _locked()

    def take(self, vcpu: KvmVcpu) -> None:
        try:
            self._lines = self._look(vcpu)
        except VmmError as error:
            self._lines = [str(error)]
        self._taken.release()

    def wait(self, timeout_sec: float) -> list[str] | None:
        """None where the vCPU has not come out of the guest in that time. Once only."""
        return self._lines if self._taken.acquire(timeout=timeout_sec) else None


def unhandled(vcpu: KvmVcpu, reason: int) -> str:
    """What to say of an exit that the board has no use for."""
    if reason == abi.KVM_EXIT_HLT:
        return f"vCPU {vcpu.index} halted for good: it has no interrupt controller that could wake it"
    return f"vCPU {vcpu.index}: {describe(reason, vcpu.page)}"


def _locked() -> _thread.LockType:
    lock = _thread.allocate_lock()
    lock.acquire()
    return lock
