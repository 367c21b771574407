"""The event loop of a VM's process: bus, signals, guest events, readiness, and the way out.

Imported only when the guest runs already (see `main.py`), so what it imports is free to take its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import signal
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

from vmservice.errors import MachineLost, VmmError
from vmservice.host import signals
from vmservice.service.dump import Dump
from vmservice.service.panic_notice import PanicNotice
from vmservice.service.reload import Reload
from vmservice.service.reopening import Reopening
from vmservice.service.sd_notify import watchdog_sec
from vmservice.service.stop import GracefulReboot, GracefulStop
from vmservice.service.watchdog import Watchdog
from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.board.timers import Timers
    from vmservice.config.load import Config
    from vmservice.control.bus import BusConnection
    from vmservice.host.consoles.base import Console
    from vmservice.host.guest_listener import GuestListener
    from vmservice.plug.backend import Backends
    from vmservice.service.guest_ready import GuestReady
    from vmservice.service.journal import Log
    from vmservice.service.keyboard import Keyboard
    from vmservice.service.outbox import Outbox
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.events import EventQueue
    from vmservice.vm.vm import Vm

EXIT_OK = 0
EXIT_BUG = 70
EXIT_HOST = 71
EXIT_NOT_READY = 75
EXIT_GUEST_RESET = 133
EXIT_GUEST_LOST = 134

# What systemd does after most failures, with the settings of the unit as it is shipped, and after which exit status not.
_NOT_STARTED_ANEW = (EXIT_OK, 64, 69, 77, 78)
_STARTS_ANEW = "the unit starts it anew, until its start limit is reached (StartLimitBurst=)"

# How long readiness waits for a bus that is not there before the VM is called ready without it.
_BUS_PATIENCE_SEC = 5.0


class Service:
    """What ties one VM to systemd and the bus. Everything in here runs in the main thread."""

    def __init__(
        self,
        vm: Vm,
        config: Config,
        events: EventQueue,
        timers: Timers,
        backends: Backends,
        log: Log,
        notifier: Notifier,
        outbox: Outbox,
        bus: str,
        listener: GuestListener | None = None,
    ) -> None:
        """With a `listener` the guest's service manager is heard there, and says when the VM is ready."""
        self._vm = vm
        self._events = events
        self._timers = timers
        self._next_timer: asyncio.TimerHandle | None = None
        self._backends = backends
        self._log = log
        self._notifier = notifier
        self._outbox = outbox
        self._bus = bus
        self._ready = False
        self._settled_bus = False  # the name is owned, or is not waited for
        self._off_bus = False
        self._said = ""
        self._stop: GracefulStop | None = None
        self._stop_status, self._stop_reason = EXIT_OK, ""
        self._reboot: GracefulReboot | None = None
        self._reload = Reload(vm, config, log, notifier, self._status)
        self._keyboards = {console.label: self._keyboard(console) for console in backends.consoles if console.input_fd >= 0}
        vm.on_input_room = self._on_input_room
        self._dump = Dump(vm, log)
        timeout_sec = watchdog_sec()
        self._watchdog = (
            Watchdog(vm, log, notifier, timeout_sec, self._tell_status, self._dump.soon) if timeout_sec is not None else None
        )
        self._guest = self._listen_to_guest(listener, config.service.ready_timeout_sec) if listener is not None else None
        self._panic_notice: PanicNotice
        self._exit: asyncio.Future[int]

    def run(self) -> int:
        """Serve the VM until it is over; the exit status of the process."""
        return asyncio.run(self._serve())

    async def _serve(self) -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_bug)
        self._exit = loop.create_future()
        self._panic_notice = PanicNotice(self._vm, self._log, loop, self._tell_status)
        self._outbox.on_bug(lambda error: self._on_thread_bug(loop, "the outbox failed", error))
        self._backends.mover.on_bug(lambda error: self._on_thread_bug(loop, "the consoles' thread failed", error))
        self._outbox.start()
        self._log.state(self._vm)
        self._vm.subscribe(self._on_change)
        self._vm.on_trouble = self._on_trouble
        loop.add_reader(self._events.fd, self._on_guest_events)
        loop.add_reader(self._timers.fd, self._run_timers)
        self._run_timers()
        for number in signals.stopping(managed=self._notifier.active):
            loop.add_signal_handler(number, self._on_stop_signal)
        if self._notifier.active:
            loop.add_signal_handler(signals.SIGINT, self._on_reboot_signal)
            loop.add_signal_handler(signals.SIGHUP, self._on_reload_signal)
        elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) wants it ignored
            loop.add_signal_handler(signals.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signals.SIGQUIT, self._dump.ask)
        signals.unblock(*signals.STOP_SIGNALS, signals.SIGHUP, signals.SIGQUIT)
        for console in self._backends.consoles:
            if console.label in self._keyboards:
                console.on_visit = partial(_soon, loop, self._keyboards[console.label].look_at_visit)
        for keyboard in self._keyboards.values():
            keyboard.start()
        loop.add_signal_handler(signal.SIGWINCH, self._on_window_change)
        if self._guest is not None:
            self._guest.start()
        connection = self._join_bus()
        tasks: list[asyncio.Task[None]] = []
        if self._watchdog is not None:
            faulthandler.enable()  # the manager's SIGABRT then leaves every thread's stack in the journal
            self._watchdog.start()
        if connection is not None:
            tasks.append(loop.create_task(self._keep_on_bus(connection)))
            from vmservice.service.sleep import HostSleep

            tasks.append(loop.create_task(HostSleep(self._vm, self._bus, self._log).run()))
        for task in tasks:
            task.add_done_callback(self._on_task_end)
        try:
            return await self._exit
        finally:
            await self._leave(tasks, connection)

    async def _leave(self, tasks: list[asyncio.Task[None]], connection: BusConnection | None) -> None:
        """Let replies go out, give the terminal back, and leave nothing running."""
        for console in self._backends.consoles:
            console.on_visit = None
        for keyboard in self._keyboards.values():
            keyboard.close()
        self._ask_no_more()
        if self._guest is not None:
            self._guest.close()
        if self._watchdog is not None:
            self._watchdog.stop()
        self._dump.wait()
        if connection is not None:
            await connection.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._events.fd)
        loop.remove_reader(self._timers.fd)
        if self._next_timer is not None:
            self._next_timer.cancel()

    def _ask_no_more(self) -> None:
        for waiting in (self._stop, self._reboot):
            if waiting is not None:
                waiting.cancel()

    def _finish(self, status: int, why: str = "") -> None:
        """End the process with `status`; `why` is a sentence, by default what became of the guest. The first call counts."""
        if self._exit.done():
            return
        self._exit.set_result(status)
        self._ask_no_more()
        if not why:
            why = self._vm.why_stopped if self._vm.state == State.SHUTDOWN else "the VM ends"
        self._vm.refuse_all(f"the VM's process is about to end: {why}")
        starts_anew = status not in _NOT_STARTED_ANEW and self._notifier.active
        text = f"{why}; {_STARTS_ANEW}" if starts_anew else why
        if not self._ready and self._stop is None and self._guest is None and status in (EXIT_OK, EXIT_GUEST_RESET):
            # The guest was done before the name was owned. It has run all the same, and to end unready is a failure to systemd.
            # Where it should have said READY=1 itself, a failure it is.
            self._notifier.ready(text)
        self._notifier.stopping()
        self._notifier.status(text)

    # Readiness and the bus

    def _join_bus(self) -> BusConnection | None:
        if self._bus == "none":
            self._settle_bus()
            return None
        from vmservice.control.bus import BusConnection

        return BusConnection(self._vm, self._bus, on_acquired=self._on_bus, on_lost=self._on_no_bus, log=self._log.error)

    async def _keep_on_bus(self, connection: BusConnection) -> None:
        """Failures that do not go away by themselves (the name is another's, the policy forbids) end the VM."""
        try:
            await connection.run()
        except VmmError as error:
            self._log.error(str(error))
            self._finish(error.exit_status, str(error))

    def _on_bus(self) -> None:
        self._log.bus_acquired()
        self._off_bus = False
        self._tell_status()
        self._settle_bus()

    def _on_no_bus(self, reason: str) -> None:
        self._log.bus_lost(f"{reason}; the VM keeps running and will take its name again")
        self._off_bus = True
        self._tell_status()
        if not self._ready:
            asyncio.get_running_loop().call_later(_BUS_PATIENCE_SEC, self._settle_bus)

    def _settle_bus(self) -> None:
        self._settled_bus = True
        self._become_ready()

    def _become_ready(self) -> None:
        """READY=1: the guest runs, or has said so itself, and, unless there is no bus, the name is owned.

        Only once, and not on the way out.
        """
        if not self._settled_bus or (self._guest is not None and not self._vm.guest_ready):
            return
        if not self._ready and self._stop is None and not self._exit.done():
            self._ready = True
            self._said = self._status()
            self._notifier.ready(self._said)

    def _tell_status(self) -> None:
        """For `systemctl status`, if it is news; what stops the VM, or reboots it, says itself how far it is."""
        if self._stop is None and self._reboot is None and not self._exit.done() and (text := self._status()) != self._said:
            self._said = text
            self._notifier.status(text)

    def _status(self) -> str:
        vcpus = f"{self._vm.vcpus} vCPU" + ("s" if self._vm.vcpus > 1 else "")
        text = f"{self._vm.state}; {vcpus}, {self._vm.memory_bytes >> 20} MiB"
        if self._vm.state == State.SHUTDOWN:
            text = f"{text}; last exit: {self._vm.last_exit}; Boot starts it again"
        if self._off_bus:
            text = f"{text}; not on the bus"
        if self._guest is not None and not self._vm.guest_ready and self._vm.state == State.RUNNING:
            text = f"{text}; waits for the guest to be ready"
        trouble = self._watchdog.trouble if self._watchdog is not None else ""
        more = (trouble, self._panic_notice.status, self._guest_status())
        return "; ".join((text, *(clause for clause in more if clause)))

    def _guest_status(self) -> str:
        """A clause: what the guest says of itself. Empty where it says nothing."""
        return self._guest.status if self._guest is not None else ""

    def _listen_to_guest(self, listener: GuestListener, timeout_sec: int) -> GuestReady:
        from vmservice.service.guest_ready import GuestReady  # few VMs have one

        return GuestReady(
            self._vm,
            listener,
            self._log,
            self._notifier,
            timeout_sec,
            changed=self._tell_status,
            give_up=self._on_guest_not_ready,
        )

    def _on_guest_not_ready(self, why: str) -> None:
        """The start has failed: the guest is powered down, as a stop does it."""
        self._log.error(f"{why}, as service.ready_timeout allows it; the VM ends")
        self._stop_status, self._stop_reason = EXIT_NOT_READY, why
        if self._stop is None:
            self._on_stop_signal()

    # What the guest and controllers do

    def _on_guest_events(self) -> None:
        for event in self._events.drain():
            if event.kind == EventKind.WATCHDOG and self._vm.state == State.RUNNING:
                self._dump.now("as the guest did not feed its watchdog")  # what follows may be a reset
            self._vm.on_guest_event(event)

    def _on_trouble(self, error: VmmError) -> None:
        """What the VM could not do for its guest, or for the stop: nobody else is told."""
        self._log.error(str(error))
        if isinstance(error, MachineLost):
            self._finish(error.exit_status, str(error))

    def _on_change(self, changes: dict[str, object]) -> None:
        self._log.state(self._vm, changes)
        if self._vm.state == State.SHUTDOWN and "State" in changes:
            self._on_shutdown()
        if "LastExit" in changes:
            self._panic_notice.forget()
            if self._guest is not None:
                self._guest.forget()
        if changes.get("GuestReady"):
            self._become_ready()
        self._tell_status()

    def _on_shutdown(self) -> None:
        """The guest is gone: does the process stay for a Boot, or does it end, and with what status?"""
        reason = self._vm.last_exit
        if self._stop is not None:
            self._finish_stop()
        elif self._reboot is not None:
            self._end_reboot(boot=reason != LastExit.SHUTDOWN)
        elif reason == LastExit.ERROR:
            self._finish(EXIT_BUG if self._vm.last_failure == EventKind.BUG else EXIT_HOST)
        elif reason == LastExit.RESET:
            self._finish(EXIT_GUEST_RESET)
        elif reason in (LastExit.PANIC, LastExit.WATCHDOG):
            self._finish(EXIT_GUEST_LOST)
        elif reason == LastExit.POWEROFF and self._reload.service.on_poweroff == "exit":
            wanted = self._guest.exit_status if self._guest is not None else None
            self._finish(wanted or EXIT_OK, f"the guest powered off with exit status {wanted}" if wanted else "")

    def _finish_stop(self) -> None:
        self._finish(self._stop_status, self._stop_reason)

    # Signals and timers

    def _on_stop_signal(self) -> None:
        if self._stop is not None:
            self._stop.force()
            return
        if self._reboot is not None:
            self._reboot.cancel()
            self._reboot = None
        patience_sec = self._reload.service.shutdown_timeout_sec
        if self._guest is not None:
            self._guest.stop_waiting()
        self._stop = GracefulStop(self._vm, self._log, self._notifier, patience_sec, self._finish_stop, self._guest_status)
        self._stop.start()

    def _on_reboot_signal(self) -> None:
        """SIGINT under systemd: the guest is powered down by its button and started again. Asked a second time, by force."""
        if self._stop is not None or self._exit.done():
            return
        if self._reboot is not None:
            self._reboot.force()
            return
        patience_sec = self._reload.service.shutdown_timeout_sec
        self._reboot = GracefulReboot(self._vm, self._log, self._notifier, patience_sec, self._end_reboot, self._guest_status)
        self._reboot.start()

    def _end_reboot(self, *, boot: bool = True) -> None:
        """The guest is down. It is started after everybody has heard of that, unless somebody wants it to stay down."""
        if self._reboot is not None:
            self._reboot.cancel()
            asyncio.get_running_loop().call_soon(self._boot_anew, boot)

    def _boot_anew(self, boot: bool) -> None:
        if self._reboot is None or self._exit.done():  # a stop came in between, or it is done, or the machine is lost
            return
        self._reboot = None
        self._said = ""  # the reboot has said other things since
        self._vm.let_go()
        try:
            if boot:
                self._vm.boot()
        except VmmError as error:
            self._log.error(f"the guest cannot be started again: {error}")
            self._finish(error.exit_status, str(error))
        self._tell_status()

    def _on_hangup(self) -> None:
        """The terminal is gone. The kernel and the shell may both say so, which is no second request."""
        if self._stop is None:
            self._on_stop_signal()

    def _on_reload_signal(self) -> None:
        """Files of consoles first: whoever has renamed them waits for that, be the configuration right or wrong."""
        if self._ready and self._stop is None:
            Reopening(self._backends.consoles, self._start_reload)

    def _start_reload(self) -> None:
        if self._stop is None and not self._exit.done():
            self._reload.start()

    def _run_timers(self) -> None:
        """Do what is due, and come back for the next. Both clocks are CLOCK_MONOTONIC."""
        due = self._timers.run_due()
        if self._next_timer is not None:
            self._next_timer.cancel()
        self._next_timer = asyncio.get_running_loop().call_at(due, self._run_timers) if due is not None else None

    def _keyboard(self, console: Console) -> Keyboard:
        from vmservice.service.keyboard import Keyboard  # few VMs have a console that takes input

        label = console.label
        return Keyboard(
            console.input_fd,
            partial(self._vm.console_input, console=label),
            self._on_stop_signal,
            console.read,
            took=console.took if console.keeps_input else None,
            visit=lambda: console.visit,
            forget=lambda: self._vm.forget_input(label),
        )

    def _on_input_room(self, label: str) -> None:
        if label in self._keyboards:
            self._keyboards[label].retry()

    def _on_window_change(self) -> None:
        for console in self._backends.consoles:
            console.look_at_size()

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """A task that fails would otherwise be missed by nobody until the VM ends."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_bug(task.get_loop(), {"exception": error, "message": "a task failed"})

    def _on_thread_bug(self, loop: asyncio.AbstractEventLoop, what: str, error: Exception) -> None:
        """In that thread."""
        loop.call_soon_threadsafe(self._on_bug, loop, {"exception": error, "message": what})

    def _on_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught is our bug: the journal gets it whole, and the VM ends rather than limp on."""
        error = context.get("exception")
        text = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else context["message"]
        self._log.error(f"internal error: {text}")
        self._finish(EXIT_BUG, "internal error; the journal has the details")


def _soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """From any thread. A client who comes when the loop has ended comes too late."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)
