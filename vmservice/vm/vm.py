"""A VM as its controllers see it: a state, and the verbs that change it.

`Vm` owns the state and the rules; a `Machine` (real in `machine.py`, simulated in `sim.py`) only obeys. Every method is for
the main thread; each returns when the work is done and either succeeds or leaves everything as it was.
"""

from __future__ import annotations

import time

from vmservice.errors import Busy, GuestError, InvalidArgument, InvalidStateTransition, VmmError
from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit, State, check_transition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.vm.events import GuestEvent
    from vmservice.vm.machine_protocol import Machine

    Changes = dict[str, object]
    Listener = Callable[[Changes], None]

# How long a guest has to take vCPUs or to give them back; Linux does so in well under a second.
RESIZE_TIMEOUT_SEC = 30.0

# Guest memory is given back to the host, and taken and filled anew, at this speed at least.
_BUILD_BYTES_PER_SEC = 256 << 20


class Resizing:
    """A Resize that waits for the guest; `on_end` is called once, with None or with what went wrong."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.deadline = time.monotonic() + RESIZE_TIMEOUT_SEC
        self.asked = f"a Resize to {target} vCPUs within {RESIZE_TIMEOUT_SEC:.0f} seconds"
        self.on_end: Callable[[VmmError | None], None] = lambda _error: None


class Vm:
    """One virtual machine: name, size, state, and what may be done with it.

    `build` makes a fresh, stopped machine with so many vCPUs; it is called at each boot, so a reboot starts from clean memory
    and devices.
    `on_reset` is what a guest's own reset leads to: "reboot" in place, or "exit", which ends in state shutdown. `on_panic` and
    `on_watchdog`, for a guest that panicked or left its watchdog unfed, may also be "pause", from which Resume leads on.
    Listeners are told after each change which properties have new values: a dict of D-Bus property names to plain values.
    """

    def __init__(
        self,
        *,
        name: str,
        vcpus: int,
        max_vcpus: int,
        memory_bytes: int,
        build: Callable[[int], Machine],
        on_reset: str = "reboot",
        on_panic: str = "exit",
        on_watchdog: str = "reboot",
    ) -> None:
        self.name = name
        self.vcpus = vcpus
        self.max_vcpus = max_vcpus
        self.memory_bytes = memory_bytes
        self.state = State.CREATED
        self.last_exit = LastExit.NONE
        self.last_detail = ""
        self.last_failure = ""
        self._balloon_bytes: int | None = None  # in place of what the configuration gave the machine
        self.building_until = 0.0  # on the monotonic clock, when a machine that is being built or closed is due; else 0
        self._boot_vcpus = vcpus
        self._build = build
        self._on_reset = on_reset
        self._on_panic = on_panic
        self._on_watchdog = on_watchdog
        self._machine: Machine | None = None
        self._deferred: list[GuestEvent] = []
        self._resizing: Resizing | None = None
        self._busy = ""
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def properties(self) -> Changes:
        """Every D-Bus property of the VM with its present value."""
        return {
            "State": self.state,
            "Name": self.name,
            "VCPUs": self.vcpus,
            "MaxVCPUs": self.max_vcpus,
            "Memory": self.memory_bytes,
            "LastExit": self.last_exit,
        }

    # What a controller may ask

    def boot(self) -> None:
        """created or shutdown → running; a paused VM is resumed."""
        if self.state == State.PAUSED:
            self.resume()
            return
        self._refuse_if_busy("Boot")
        check_transition(self.state, State.RUNNING)
        self._start_machine(self._boot_vcpus)
        self._changed(state=State.RUNNING, vcpus=self._boot_vcpus)

    def pause(self) -> None:
        self._refuse_if_busy("Pause")
        check_transition(self.state, State.PAUSED)
        self._running_machine().pause()
        self._changed(state=State.PAUSED)

    def resume(self) -> None:
        """paused → running. Boot is the way from created and shutdown, though the table has those moves too."""
        self._refuse_if_busy("Resume")
        if self.state != State.PAUSED:
            raise InvalidStateTransition(
                f"a VM in state {self.state} cannot go to state running by Resume; Resume needs state paused"
            )
        self._running_machine().resume()
        self._changed(state=State.RUNNING)
        deferred, self._deferred = self._deferred, []
        for event in deferred:
            self.handle(event)

    def shutdown(self) -> None:
        """The hard stop: the guest is not asked."""
        check_transition(self.state, State.SHUTDOWN)
        self._stop(LastExit.SHUTDOWN)

    def reboot(self) -> None:
        """Hard reset in place, to clean memory and running vCPUs."""
        self._refuse_if_busy("Reboot")
        check_transition(self.state, State.SHUTDOWN)
        self._reset_in_place()

    def power_button(self) -> None:
        if self.state != State.RUNNING:
            raise InvalidStateTransition(
                f"the power button of a VM in state {self.state} cannot be pressed; it needs state running"
            )
        self._running_machine().press_power_button()

    def resize(self, desired_vcpus: int) -> Resizing | None:
        """Change the number of vCPUs of a running VM: None when that is done, else what waits for the guest.

        A guest that has not answered after RESIZE_TIMEOUT_SEC ends it with a GuestError, which says how many there are.
        """
        self._refuse_if_busy("Resize")
        if not 1 <= desired_vcpus <= self.max_vcpus:
            raise InvalidArgument(f"Resize to {desired_vcpus} vCPUs is out of range; this VM takes 1 to {self.max_vcpus}")
        if self.state != State.RUNNING:
            raise InvalidStateTransition(f"a VM in state {self.state} cannot be resized; it needs state running")
        if desired_vcpus == self.vcpus:
            return None
        machine = self._running_machine()
        machine.set_vcpus(desired_vcpus)
        self._changed(vcpus=machine.vcpus)
        if self.vcpus == desired_vcpus:
            return None
        self._resizing = Resizing(desired_vcpus)
        return self._resizing

    # What the service tells it

    def reconfigure(self, *, boot_vcpus: int, on_reset: str, on_panic: str = "exit", on_watchdog: str = "reboot") -> None:
        """What the next Boot starts with, and what the guest's next reset, panic and unfed watchdog lead to."""
        self._boot_vcpus = boot_vcpus
        self._on_reset = on_reset
        self._on_panic = on_panic
        self._on_watchdog = on_watchdog

    def set_balloon(self, size_bytes: int) -> None:
        """From now on, and after each boot, ask the guest to lend so much; less than its memory."""
        self._balloon_bytes = size_bytes
        if self._machine is not None:
            self._machine.set_balloon(size_bytes)

    def hold(self, reason: str) -> None:
        """Refuse the verbs that would undo what is under way, with `reason` ("it is being stopped"); Shutdown stays allowed."""
        self._busy = reason

    def handle(self, event: GuestEvent) -> None:
        """Act on what the guest did. While paused nothing happens: the event waits for Resume."""
        if event.source is not self._machine:
            return
        if self.state == State.PAUSED:
            self._deferred.append(event)
        elif event.kind == EventKind.VCPUS:
            self._settle_vcpus()
        elif event.call is not None:
            event.call()
        elif event.kind == EventKind.POWEROFF:
            self._stop(LastExit.POWEROFF)
        elif event.kind in (EventKind.ERROR, EventKind.BUG):
            self.last_failure = event.kind
            self._stop(LastExit.ERROR, event.detail)
        elif event.kind == EventKind.PANIC:
            self._follow(self._on_panic, LastExit.PANIC)
        elif event.kind == EventKind.WATCHDOG:
            self._follow(self._on_watchdog, LastExit.WATCHDOG)
        else:
            self._follow(self._on_reset, LastExit.RESET)

    def console_input(self, data: bytes, console: str = "serial") -> int:
        """What a person typed at the guest's `console`, serial or hvc; how many bytes it took, 0 unless it runs."""
        return self._machine.console_input(data, console) if self._machine is not None else 0

    def tick(self) -> None:
        """Several times a second: move on console output that waits, and give up on a guest that does not answer."""
        if self._machine is not None:
            self._machine.drain()
        if self._resizing is not None and time.monotonic() > self._resizing.deadline:
            self._give_up_resizing(f"the guest did not answer {self._resizing.asked}")

    def silent(self, patience_sec: float) -> list[str]:
        """What of the machine gives no sign of life: see `Machine.silent`. Unlike the rest not for the main thread only."""
        machine = self._machine
        return machine.silent(patience_sec) if machine is not None else []

    def close(self) -> None:
        """Give everything back to the host, whatever the state."""
        if self._machine is not None:
            self._expect_work()
            self._machine.close()
            self._machine = None
            self.building_until = 0.0

    # How it is done

    def _refuse_if_busy(self, verb: str) -> None:
        if self._busy:
            raise Busy(f"{verb} is refused because {self._busy}")
        if self._resizing is not None:
            raise Busy(f"{verb} is refused because a Resize to {self._resizing.target} vCPUs is under way")

    def _running_machine(self) -> Machine:
        assert self._machine is not None, "a VM that is running or paused has a machine"
        return self._machine

    def _start_machine(self, vcpus: int) -> None:
        self._expect_work()
        try:
            machine = self._build(vcpus)
            try:
                if self._balloon_bytes is not None:
                    machine.set_balloon(self._balloon_bytes)
                machine.start()
            except BaseException:
                machine.close()
                raise
            self._machine = machine
        finally:
            self.building_until = 0.0

    def _expect_work(self) -> None:
        """The main thread is about to do what takes as long as the guest's memory is large."""
        self.building_until = time.monotonic() + self.memory_bytes / _BUILD_BYTES_PER_SEC

    def _follow(self, policy: str, reason: str) -> None:
        """Do what the configuration wants for a guest that came to its end by `reason`."""
        if self._busy or policy == "exit":
            self._stop(reason)
        elif policy == "pause":
            if self._resizing is not None:
                self._give_up_resizing(f"the VM was paused by its {reason} while it was being resized")
            self._running_machine().pause()
            self._changed(state=State.PAUSED, last_exit=reason)
        else:
            self._reset_in_place(reason)

    def _reset_in_place(self, reason: str = LastExit.RESET) -> None:
        """The vCPUs are those that the VM has now: a Resize outlives a reset."""
        self.close()
        self._deferred.clear()
        self._end_resizing(GuestError("the VM was reset while it was being resized"))
        try:
            self._start_machine(self.vcpus)
        except BaseException:
            self._changed(state=State.SHUTDOWN, last_exit=LastExit.ERROR)
            raise
        self._changed(state=State.RUNNING, last_exit=reason)

    def _stop(self, reason: str, detail: str = "") -> None:
        self.close()
        self._deferred.clear()
        self._end_resizing(GuestError("the VM was shut down while it was being resized"))
        self.last_detail = detail
        self._changed(state=State.SHUTDOWN, last_exit=reason)

    def _settle_vcpus(self) -> None:
        machine = self._running_machine()
        machine.settle_vcpus()
        self._changed(vcpus=machine.vcpus)
        if self._resizing is not None and self._resizing.target == self.vcpus:
            self._end_resizing(None)

    def _give_up_resizing(self, why: str) -> None:
        machine = self._running_machine()
        machine.cancel_set_vcpus()
        self._changed(vcpus=machine.vcpus)
        self._end_resizing(GuestError(f"{why}; it has {self.vcpus}"))

    def _end_resizing(self, error: VmmError | None) -> None:
        resizing, self._resizing = self._resizing, None
        if resizing is not None:
            resizing.on_end(error)

    def _changed(self, state: str | None = None, vcpus: int | None = None, last_exit: str | None = None) -> None:
        """Take the new values and tell the listeners. A guest that stops anew for the same reason is news all the same."""
        before = self.properties()
        self.state = self.state if state is None else state
        self.vcpus = self.vcpus if vcpus is None else vcpus
        self.last_exit = self.last_exit if last_exit is None else last_exit
        changes = {name: value for name, value in self.properties().items() if value != before[name]}
        if last_exit is not None:
            changes["LastExit"] = last_exit
        if changes:
            for listener in self._listeners:
                listener(changes)
