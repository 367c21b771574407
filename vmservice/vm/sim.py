"""A machine with no KVM behind it, for clients of the bus object that want a VM to talk to, and for tests.

Its guest prints a heartbeat line while it runs, and when its power button is pressed it takes a moment and powers off.
"""

from __future__ import annotations

import _thread
import time

from vmservice.errors import InvalidArgument
from vmservice.vm.events import EventKind, GuestEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config.load import Device
    from vmservice.vm.events import EventQueue

HEARTBEAT_SEC = 1.0
POWEROFF_SEC = 0.5


class SimMachine:
    """A simulated guest on a thread of its own; obeys as `vmservice.vm.machine_protocol.Machine` says.

    Guest time stands still while paused: what was due then comes that much later. A Resize takes `resize_sec` a vCPU, or none.
    """

    def __init__(
        self,
        events: EventQueue,
        console: Callable[[bytes], None],
        *,
        vcpus: int,
        max_vcpus: int,
        heartbeat_sec: float = HEARTBEAT_SEC,
        poweroff_sec: float = POWEROFF_SEC,
        resize_sec: float = 0.0,
    ) -> None:
        self.vcpus = vcpus
        self._wanted_vcpus = vcpus
        self._max_vcpus = max_vcpus
        self._console = console
        self._events = events
        self._heartbeat_sec = heartbeat_sec
        self._poweroff_sec = poweroff_sec
        self._resize_sec = resize_sec
        self._lock = _thread.allocate_lock()  # held while the guest does something, and while it is told something
        self._changed = _thread.allocate_lock()  # released to wake the guest from its wait
        self._changed.acquire()
        self._ended = _thread.allocate_lock()  # held by the guest's thread for as long as it lives
        self._alive = False
        self._paused_at = 0.0
        self._beat_at = 0.0
        self._poweroff_at = 0.0
        self._resize_at = 0.0
        self._beats = 0

    def start(self) -> None:
        now = time.monotonic()
        self._alive = True
        self._beat_at = now + self._heartbeat_sec
        self._console(f"simulated guest: {self.vcpus} vCPUs, no KVM\r\n".encode())
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._live, ())
        except BaseException:
            self._ended.release()
            raise

    def pause(self) -> None:
        with self._lock:
            self._paused_at = time.monotonic()

    def resume(self) -> None:
        with self._lock:
            paused_sec = time.monotonic() - self._paused_at
            self._paused_at = 0.0
            self._beat_at += paused_sec
            if self._poweroff_at:
                self._poweroff_at += paused_sec
            if self._resize_at:
                self._resize_at += paused_sec
        self._wake()

    def press_power_button(self) -> None:
        with self._lock:
            if self._poweroff_at == 0.0:
                self._poweroff_at = time.monotonic() + self._poweroff_sec
                self._console(b"simulated guest: power button pressed, going down\r\n")
        self._wake()

    def set_vcpus(self, count: int) -> None:
        if not 1 <= count <= self._max_vcpus:
            raise InvalidArgument(f"a simulated machine cannot have {count} vCPUs; this one takes 1 to {self._max_vcpus}")
        with self._lock:
            self._wanted_vcpus = count
            if self._resize_sec:
                self._resize_at = time.monotonic() + self._resize_sec
            else:
                self._take_vcpus(count)
        self._wake()

    def settle_vcpus(self) -> None:
        """A vCPU that was given back leaves nothing behind."""

    def cancel_set_vcpus(self) -> None:
        with self._lock:
            self._wanted_vcpus = self.vcpus
            self._resize_at = 0.0

    def console_input(self, data: bytes, console: str = "serial") -> int:
        """The simulated guest echoes what is typed, as a line discipline would."""
        with self._lock:
            if self._paused_at or not self._alive:
                return 0
            self._console(data)
            return len(data)

    def forget_input(self, console: str) -> None:
        """It keeps nothing."""

    def reconfigure(self, device: Device) -> None:
        """The simulated machine has no devices beside its console."""

    def stats(self) -> dict[str, float]:
        return {"sim.heartbeats": self._beats}

    def silent(self, patience_sec: float) -> list[str]:
        if not self._lock.acquire(timeout=patience_sec):
            return ["the simulated guest"]
        self._lock.release()
        return []

    def describe(self) -> list[str]:
        return [f"{self.vcpus} simulated vCPUs"]

    def close(self) -> None:
        with self._lock:
            self._alive = False
        self._wake()
        with self._ended:
            pass

    # The guest

    def _live(self) -> None:
        try:
            while True:
                with self._lock:
                    if not self._alive:
                        return
                    wait_sec = -1.0 if self._paused_at else self._act(time.monotonic())
                self._changed.acquire(True, wait_sec)
        finally:
            self._ended.release()

    def _act(self, now: float) -> float:
        """Do what is due; returns in how many seconds the next thing is."""
        if self._poweroff_at and now >= self._poweroff_at:
            self._console(b"simulated guest: power off\r\n")
            self._alive = False
            self._events.post(GuestEvent(self, EventKind.POWEROFF))
            return 0.0
        if now >= self._beat_at:
            self._beats += 1
            self._console(f"simulated guest: heartbeat {self._beats}\r\n".encode())
            self._beat_at += self._heartbeat_sec
            if self._beat_at <= now:  # the host was busy: beats that were missed are not made up
                self._beat_at = now + self._heartbeat_sec
        if self._resize_at and now >= self._resize_at:
            self._resize_at = 0.0
            if self.vcpus != self._wanted_vcpus:
                self._take_vcpus(self.vcpus + (1 if self._wanted_vcpus > self.vcpus else -1))
                self._events.post(GuestEvent(self, EventKind.VCPUS))
                self._resize_at = now + self._resize_sec
        due = min(at for at in (self._beat_at, self._poweroff_at, self._resize_at) if at)
        return max(0.0, due - now)

    def _take_vcpus(self, count: int) -> None:
        self.vcpus = count
        self._console(f"simulated guest: {count} vCPUs\r\n".encode())

    def _wake(self) -> None:
        try:
            self._changed.release()
        except RuntimeError:  # it was not held: the guest is awake already
            return
