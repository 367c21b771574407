"""A VM as its controllers see it: a state, and the verbs that change it.

`Vm` owns the state and the rules; a `Machine` (real in `machine.py`, simulated in `sim.py`) only obeys. Every method is for
the main thread unless it says otherwise. A verb returns when the work is done, or answers the `Operation` that waits for the
guest, and either succeeds or leaves everything as it was.
"""

from __future__ import annotations

from vmservice.errors import Busy, HostError, InvalidArgument, InvalidStateTransition, MachineLost, VmmError
from vmservice.vm.events import EventKind
from vmservice.vm.holder import MachineHolder
from vmservice.vm.operation import Operation
from vmservice.vm.state import EXIT_TEXTS, LastExit, State, check_transition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config.load import Device
    from vmservice.plug.backend import DeviceDetails
    from vmservice.vm.events import GuestEvent
    from vmservice.vm.machine_protocol import Machine
    from vmservice.vm.operation import CallLater

    Changes = dict[str, object]
    Listener = Callable[[Changes], None]

# How long a guest has to take vCPUs or to give them back; Linux does so in well under a second. Clients of libdbus, GDBus and
# sd-bus give up after 25.
RESIZE_TIMEOUT_SEC = 20.0


class Vm:
    """One virtual machine: name, size, state, and what may be done with it.

    `build` makes a fresh, stopped machine with so many vCPUs; it is called at each boot, so a reboot starts from clean memory
    and devices. `check` raises what `build` would meet for sure: a kernel that is gone. `call_later(seconds, callback)` makes a
    timer of the main thread.
    `on_reset` is what a guest's own reset leads to: "reboot" in place, or "exit", which ends in state shutdown. `on_panic` and
    `on_watchdog`, for a guest that panicked or left its watchdog unfed, may also be "pause", from which Resume leads on.
    With `ready_by_guest` the guest itself says when it is ready, by `note_guest_ready`; else it is once it runs.
    `devices` lists them as `Devices` on the bus has them: see Backends.details.
    Listeners are told after each change which properties have new values: a dict of D-Bus property names to plain values.
    `on_trouble` is told what went wrong where no caller is told: a policy that could not be carried out, or MachineLost, after
    which the process has to end. `on_input_room` is told a console that may take typed bytes again after it refused some,
    `on_panic_line` the reason for which the guest's console says that its kernel has panicked.
    """

    def __init__(
        self,
        *,
        name: str,
        vcpus: int,
        max_vcpus: int,
        memory_bytes: int,
        build: Callable[[int], Machine],
        call_later: CallLater,
        check: Callable[[], None] = lambda: None,
        devices: Callable[[], list[DeviceDetails]] = list,
        on_reset: str = "reboot",
        on_panic: str = "exit",
        on_watchdog: str = "reboot",
        ready_by_guest: bool = False,
    ) -> None:
        self.name = name
        self.vcpus = vcpus
        self.max_vcpus = max_vcpus
        self.memory_bytes = memory_bytes
        self.devices = devices()  # as they were last told
        self.state = State.CREATED
        self.guest_ready = False
        self.paused_by = ""  # PANIC or WATCHDOG of LastExit where a policy has paused it, and nobody's verb
        self.last_exit = LastExit.NONE
        self.last_detail = ""  # what more there is to say of the last exit
        self.last_failure = ""  # ERROR or BUG of EventKind where the last exit was one
        self.was_forced = False  # the last exit was a stop that the guest was asked for and did not make
        self.on_trouble: Callable[[VmmError], None] = _raise
        self._ready_at_start = not ready_by_guest
        self._boot_vcpus = vcpus
        self._call_later = call_later
        self._check = check
        self._list_devices = devices
        self._on_reset = on_reset
        self._on_panic = on_panic
        self._on_watchdog = on_watchdog
        self.on_input_room: Callable[[str], None] = lambda _console: None
        self.on_panic_line: Callable[[str], None] = lambda _reason: None
        self._holder = MachineHolder(build, memory_bytes, self._tell_input_room)
        self._deferred: list[GuestEvent] = []
        self._operation: Operation | None = None
        self._stopping = ""  # why most verbs are refused
        self._ending = ""  # why all of them are
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def properties(self) -> Changes:
        """Every D-Bus property of the VM with its present value, but for `Stats`."""
        return {
            "State": self.state,
            "Name": self.name,
            "VCPUs": self.vcpus,
            "MaxVCPUs": self.max_vcpus,
            "Memory": self.memory_bytes,
            "LastExit": self.last_exit,
            "GuestReady": self.guest_ready,
            "Devices": self.devices,
        }

    def stats(self) -> dict[str, float]:
        """Counters since the guest's start: see `Machine.stats`. None where there is no guest."""
        machine = self._holder.machine
        return machine.stats() if machine is not None else {}

    @property
    def operation(self) -> Operation | None:
        """The one that is under way."""
        return self._operation if self._operation is not None and not self._operation.is_over else None

    @property
    def why_stopped(self) -> str:
        """A clause for a person: why the guest last stopped, as far as that is known."""
        if self.was_forced:
            return f"it was forced to stop: {self.last_detail}"
        text = EXIT_TEXTS[self.last_exit]
        # Of a bug of ours the detail is a traceback, which is for the journal.
        return f"{text}: {self.last_detail}" if self.last_failure == EventKind.ERROR and self.last_detail else text

    # What a controller may ask

    def boot(self) -> None:
        """created or shutdown → running; a paused VM is resumed."""
        self._refuse_if_stopping("Boot")
        if self.state == State.PAUSED:
            self._resume()
            return
        check_transition(self.name, self.state, State.RUNNING)
        self._holder.start(self._boot_vcpus)
        self._changed(state=State.RUNNING, vcpus=self._boot_vcpus, ready=self._ready_at_start)
        self._holder.offer_input()

    def pause(self) -> None:
        """running → paused. What waits for the guest ends."""
        self._refuse_if_stopping("Pause")
        check_transition(self.name, self.state, State.PAUSED)
        self._pause()

    def resume(self) -> None:
        """paused → running. Boot is the way from created and shutdown, though the table has those moves too."""
        self._refuse_if_stopping("Resume")
        if self.state != State.PAUSED:
            already = f"{self.name} is already running"
            needs = f"{self.name} is {self.state}; Resume takes a VM from paused to running"
            raise InvalidStateTransition(already if self.state == State.RUNNING else needs)
        self._resume()

    def shutdown(self) -> None:
        """The hard stop: the guest is not asked. HostError, and the guest goes on, where its vCPUs do not stop."""
        self._refuse_if_ending("Shutdown")
        check_transition(self.name, self.state, State.SHUTDOWN)
        self._note_vcpus()
        self._holder.close()
        self._stopped(LastExit.SHUTDOWN)

    def reboot(self) -> None:
        """Hard reset in place, to clean memory and running vCPUs."""
        self._refuse_if_stopping("Reboot")
        if self.state not in (State.RUNNING, State.PAUSED):
            raise InvalidStateTransition(f"{self.name} is {self.state}; only a running or paused VM can be reset")
        self._check()
        self._note_vcpus()
        self._holder.close()
        self._start_anew(LastExit.RESET, "Reboot was asked for")

    def power_button(self) -> None:
        self._refuse_if_ending("PowerButton")
        if self.state != State.RUNNING:
            raise InvalidStateTransition(f"{self.name} is {self.state}; only the power button of a running VM can be pressed")
        self._holder.present.press_power_button()

    def resize(self, desired_vcpus: int) -> Operation | None:
        """Change the number of vCPUs of a running VM: None when that is done, else what waits for the guest.

        A guest that has not answered after RESIZE_TIMEOUT_SEC ends it with GuestNotResponding, which says how many there are.
        What it does later counts all the same.
        """
        self._refuse_if_stopping("Resize")
        if not 1 <= desired_vcpus <= self.max_vcpus:
            raise InvalidArgument(f"Resize to {desired_vcpus} vCPUs is out of range; this VM takes 1 to {self.max_vcpus}")
        if self.state != State.RUNNING:
            raise InvalidStateTransition(f"{self.name} is {self.state}; only a running VM can be resized")
        self._note_vcpus()
        if self.operation is not None:
            raise Busy(f"Resize is refused because {self.operation.asked} is under way")
        if desired_vcpus == self.vcpus:
            return None
        machine = self._holder.present
        machine.set_vcpus(desired_vcpus)
        self._changed(vcpus=machine.vcpus)
        if self.vcpus == desired_vcpus:
            return None
        self._operation = Operation(
            "Resize",
            f"a Resize to {desired_vcpus} vCPUs",
            RESIZE_TIMEOUT_SEC,
            call_later=self._call_later,
            is_done=lambda: self.vcpus == desired_vcpus,
            withdraw=self._withdraw_resize,
        )
        return self._operation

    # What the service tells it

    def reconfigure(self, *, boot_vcpus: int, on_reset: str, on_panic: str = "exit", on_watchdog: str = "reboot") -> None:
        """What the next Boot starts with, and what the guest's next reset, panic and unfed watchdog lead to."""
        self._boot_vcpus = boot_vcpus
        self._on_reset = on_reset
        self._on_panic = on_panic
        self._on_watchdog = on_watchdog

    def reconfigure_device(self, device: Device) -> None:
        """From now on, and after each boot, the device of that name is as this section of the configuration says."""
        self._holder.reconfigure(device)
        self._changed()

    def note_guest_ready(self) -> None:
        """The guest has said so; until its end, or its reset, it stays so."""
        self._changed(ready=True)

    def hold(self, reason: str) -> None:
        """Refuse the verbs that would undo what is under way, with `reason` ("the VM is being stopped").

        Shutdown and PowerButton stay allowed. A paused guest goes on, which may be to its end: what it did is acted upon.
        """
        self._stopping = reason
        if self.state == State.PAUSED:
            self._resume()

    def let_go(self) -> None:
        """What `hold` was for is over: every verb is allowed again."""
        self._stopping = ""

    def refuse_all(self, reason: str) -> None:
        """Refuse every verb from now on: the process has decided to end. The first reason stays."""
        self._ending = self._ending or reason

    def force_stop(self, why: str) -> None:
        """Stop the guest at once where it did not stop as it was asked to; `why` is a clause. Nothing for a VM that is down.

        A guest that was paused by its panic has that as its last exit already.
        """
        if self.state not in (State.RUNNING, State.PAUSED) or self._holder.is_lost:
            return
        last_exit = LastExit.PANIC if self.paused_by == LastExit.PANIC else LastExit.ERROR
        try:
            self._close_for_good()
        except MachineLost as error:
            self.on_trouble(error)
        else:
            self._stopped(last_exit, why, was_forced=True)

    def on_guest_event(self, event: GuestEvent) -> None:
        """Act on what the guest did, or keep it until the guest goes on where it is paused."""
        if event.source is not self._holder.machine or self._holder.is_lost:
            return
        if self.state == State.PAUSED:
            self._deferred.append(event)
            return
        try:
            self._act_on(event)
        except VmmError as error:
            self.on_trouble(error)

    def console_input(self, data: bytes, console: str = "serial") -> int:
        """What a person typed at the guest's `console`, serial or hvc; how many bytes it took, 0 unless it runs."""
        return self._holder.type(data, console)

    def forget_input(self, console: str) -> None:
        """Whoever typed at `console` is gone, and what the guest has not taken with them."""
        self._holder.forget_input(console)

    def silent(self, patience_sec: float) -> list[str]:
        """What of the machine gives no sign of life: see `Machine.silent`. Unlike the rest not for the main thread only."""
        machine = self._holder.machine
        return machine.silent(patience_sec) if machine is not None else []

    def describe(self) -> list[str]:
        """A line or more for each vCPU: see `Machine.describe`. For any thread."""
        machine = self._holder.machine
        return machine.describe() if machine is not None else []

    def close(self) -> None:
        """Give everything back to the host, whatever the state: the process ends. MachineLost, once, where that cannot be."""
        self._holder.close_for_good()

    @property
    def building_until(self) -> float:
        """On the monotonic clock, when a machine that is being built or closed is due; else 0."""
        return self._holder.working_until

    # How it is done

    def _refuse_if_stopping(self, verb: str) -> None:
        self._refuse_if_ending(verb)
        if self._stopping:
            raise Busy(f"{verb} is refused because {self._stopping}")

    def _refuse_if_ending(self, verb: str) -> None:
        if self._ending:
            raise Busy(f"{verb} is refused because {self._ending}")

    def _pause(self, reason: str | None = None, detail: str = "") -> None:
        """`reason` is the LastExit whose policy it is, `detail` what more there is to say of that."""
        self._holder.present.pause()
        if reason is not None:
            self.last_detail, self.last_failure, self.was_forced = detail, "", False
        self._note_vcpus()
        self._changed(state=State.PAUSED, last_exit=reason, paused_by=reason or "")
        if self._operation is not None:
            self._operation.cancel("the VM was paused")

    def _resume(self) -> None:
        self._holder.present.resume()
        self._changed(state=State.RUNNING)
        self._holder.offer_input()
        deferred, self._deferred = self._deferred, []
        for event in deferred:
            self.on_guest_event(event)

    def _act_on(self, event: GuestEvent) -> None:
        if event.kind == EventKind.CALL:
            if event.call is not None:
                event.call()
        elif event.kind == EventKind.VCPUS:
            self._note_vcpus()
            self._holder.present.settle_vcpus()
        elif event.kind == EventKind.PANIC_LINE:
            self.on_panic_line(event.detail)
        elif event.kind == EventKind.POWEROFF:
            self._end(LastExit.POWEROFF, event.detail)
        elif event.kind in (EventKind.ERROR, EventKind.BUG):
            self._end(LastExit.ERROR, event.detail, failure=event.kind)
        elif event.kind == EventKind.PANIC:
            self._follow(self._on_panic, LastExit.PANIC, event.detail)
        elif event.kind == EventKind.WATCHDOG:
            self._follow(self._on_watchdog, LastExit.WATCHDOG, event.detail)
        else:
            self._follow(self._on_reset, LastExit.RESET, event.detail)

    def _follow(self, policy: str, reason: str, detail: str) -> None:
        """Do what the configuration wants for a guest that came to its end by `reason`."""
        if self._stopping or self._ending or policy == "exit":
            self._end(reason, detail)
        elif policy == "pause":
            try:
                self._pause(reason, detail)
            except HostError as error:
                raise HostError(f"{EXIT_TEXTS[reason]}; it runs on, as it cannot be paused: {error}") from error
        else:
            self._close_for_good()
            try:
                self._start_anew(reason, detail)
            except VmmError:
                return  # the state says it, with why

    def _end(self, reason: str, detail: str, failure: str = "") -> None:
        self._close_for_good()
        self._stopped(reason, detail, failure)

    def _close_for_good(self) -> None:
        """For a guest that must not go on. MachineLost where it cannot be stopped."""
        self._note_vcpus()
        try:
            self._holder.close_for_good()
        except MachineLost:
            self.refuse_all("its machine cannot be stopped, and the process ends")
            raise

    def _start_anew(self, reason: str, detail: str) -> None:
        """After `close`. The vCPUs are those that the VM has now: a Resize outlives a reset."""
        self._deferred.clear()
        try:
            self._holder.start(self.vcpus)
        except BaseException as error:
            failure = EventKind.ERROR if isinstance(error, VmmError) else EventKind.BUG
            self._stopped(LastExit.ERROR, f"it was reset, and cannot start anew: {error}", failure)
            raise
        self.last_detail, self.last_failure, self.was_forced = detail, "", False
        self._changed(state=State.RUNNING, last_exit=reason, ready=self._ready_at_start)
        self._abandon_operation("the VM was reset")
        self._holder.offer_input()

    def _stopped(self, reason: str, detail: str = "", failure: str = "", *, was_forced: bool = False) -> None:
        self._deferred.clear()
        self.last_detail, self.last_failure, self.was_forced = detail, failure, was_forced
        self._changed(state=State.SHUTDOWN, last_exit=reason, ready=False)
        self._abandon_operation("the VM was shut down")

    def _abandon_operation(self, why: str) -> None:
        """What waited for a guest that is gone now; who is told of it finds the VM in its new state."""
        if self._operation is not None:
            self._operation.abandon(why)

    def _note_vcpus(self) -> None:
        """See what the guest has done by now, whether or not its event has come yet."""
        self._changed(vcpus=self._holder.present.vcpus)
        if self._operation is not None:
            self._operation.check()

    def _withdraw_resize(self) -> str:
        machine = self._holder.present
        machine.cancel_set_vcpus()
        self._changed(vcpus=machine.vcpus)
        return f"it has {self.vcpus}"

    def _tell_input_room(self, console: str) -> None:
        self.on_input_room(console)

    def _changed(
        self,
        state: str | None = None,
        vcpus: int | None = None,
        last_exit: str | None = None,
        paused_by: str = "",
        ready: bool | None = None,
    ) -> None:
        """Take the new values and tell the listeners. A guest that stops anew for the same reason is news all the same."""
        before = self.properties()
        self.devices = self._list_devices()
        self.state = self.state if state is None else state
        self.vcpus = self.vcpus if vcpus is None else vcpus
        self.last_exit = self.last_exit if last_exit is None else last_exit
        self.guest_ready = self.guest_ready if ready is None else ready
        if state is not None:
            self.paused_by = paused_by
        changes = {name: value for name, value in self.properties().items() if value != before[name]}
        if last_exit is not None:
            changes["LastExit"] = last_exit
        if changes:
            for listener in self._listeners:
                listener(changes)


def _raise(error: VmmError) -> None:
    raise error
