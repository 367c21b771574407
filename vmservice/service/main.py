"""What the unit runs: configuration, machine, first instruction of the guest, and only then bus, signals and timers.

Everything imported here before `service/loop.py` delays the guest; asyncio and dbus-next cost more than the rest together, so
they are imported while the guest already runs.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from vmservice.board.timers import Timers
from vmservice.config.load import check_files, load_config
from vmservice.config.names import check_name, config_path
from vmservice.errors import VmmError, sentences
from vmservice.host import landlock, run_lock, signals
from vmservice.host.consoles.mover import Mover
from vmservice.plug.backend import Backends, Host
from vmservice.service.journal import Log
from vmservice.service.outbox import Outbox
from vmservice.service.progress import Progress
from vmservice.service.sd_notify import Notifier
from vmservice.vm.events import EventQueue
from vmservice.vm.vm import Vm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config.load import Config
    from vmservice.host.guest_listener import GuestListener
    from vmservice.vm.machine_protocol import Machine

# A vCPU that comes out of KVM_RUN waits for the interpreter's lock; the default of 5 ms would be its worst case.
_SWITCH_INTERVAL_SEC = 0.0001

# Importing holds the interpreter's lock for milliseconds at a stretch; the guest's first exits shall not wait for that.
_HEAD_START_SEC = 0.004


class RunOptions:
    """`vmservice run` as it was asked for. `bus` is system, session, none or an address."""

    __slots__ = ("boot", "bus", "config_path", "name", "simulate")

    def __init__(
        self, name: str, *, config_path: str | None = None, bus: str = "system", boot: bool = True, simulate: bool = False
    ) -> None:
        self.name = name
        self.config_path = config_path
        self.bus = bus
        self.boot = boot
        self.simulate = simulate


def run(options: RunOptions) -> int:
    """Run one VM until it ends; the exit status of the process."""
    sys.setswitchinterval(_SWITCH_INTERVAL_SEC)
    # Held back until the event loop can act on them; vCPU threads inherit this and are never bothered.
    signals.block(*signals.STOP_SIGNALS)
    # The outbox's thread alone lets it in: see signals.Interrupting.
    signals.block(signals.SIGALRM)
    signals.make_interrupting(signals.SIGALRM)
    landlock.confine()
    outbox = Outbox()
    log = Log(options.name, outbox)
    notifier = Notifier(log.warning, outbox)
    # The manager's word for a reload; from a terminal it is the end of the session, which stops the VM as SIGTERM does.
    signals.block(signals.SIGHUP, signals.SIGQUIT)
    try:
        return _run(options, log, notifier, outbox)
    except VmmError as error:
        for sentence in sentences(error):
            log.error(sentence)
        notifier.failed(str(error), getattr(error, "errno", 0))
        return error.exit_status
    except Exception as error:  # the process's top: our bug, whole in the journal
        import traceback

        log.error(f"internal error: {''.join(traceback.format_exception(error))}")
        notifier.failed("internal error; the journal has the details")
        return VmmError.exit_status
    finally:
        outbox.close()
        log.print_left()


def _run(options: RunOptions, log: Log, notifier: Notifier, outbox: Outbox) -> int:
    check_name(options.name)
    path = options.config_path or config_path(options.name, user=options.bus == "session")
    config = load_config(options.name, path)
    log.limit(config.service.log_level)
    run_lock.hold(options.name, user=options.bus == "session")  # given back by the kernel, when the process is gone
    closers: list[Callable[[], None]] = []
    try:
        events = EventQueue()
        closers.append(events.close)
        timers = Timers()
        closers.append(timers.close)
        mover = Mover()
        closers.append(mover.close)
        passed = _passed_sockets()
        listener = _open_listener(options, config, passed)
        if listener is not None:
            closers.append(listener.close)
        host = Host(config.name, log, mover, passed, is_simulated=options.simulate)
        backends = Backends(config, host)
        closers.append(backends.close)
        told = {}
        if listener is not None:
            listener.cid = backends.guest_cid
            told = {listener.credential: listener.address.encode()}
        progress = Progress(notifier, outbox)
        vm = _make_vm(options, config, events, timers, backends, log, progress, told, closers)
        closers.append(vm.close)
        stopping = signals.stopping(managed=notifier.active)
        if options.boot and not signals.any_pending(*stopping):
            vm.boot()
            progress.status = ""
            time.sleep(_HEAD_START_SEC)
        if signals.any_pending(*stopping):
            # A guest of a few milliseconds has nothing to lose, and no driver for a power button; it would be waited for.
            log.info("told to stop before the guest had begun; the VM ends at once")
            notifier.stopping()
            return 0
        gc.enable()
        from vmservice.service.lean import load_less

        load_less()
        from vmservice.service.loop import Service

        return Service(vm, config, events, timers, backends, log, notifier, outbox, options.bus, listener).run()
    finally:
        _close_all(closers)


def _close_all(closers: list[Callable[[], None]]) -> None:
    """The last one first, and the others also when one fails."""
    if closers:
        try:
            closers.pop()()
        finally:
            _close_all(closers)


def _make_vm(
    options: RunOptions,
    config: Config,
    events: EventQueue,
    timers: Timers,
    backends: Backends,
    log: Log,
    progress: Progress,
    told: dict[str, bytes],
    closers: list[Callable[[], None]],
) -> Vm:
    """`told` are credentials that the guest is given whatever else there is."""

    def tell_room(console: str) -> None:
        vm.on_input_room(console)

    if options.simulate:
        from vmservice.vm.sim import SimMachine

        def build(vcpus: int) -> Machine:
            write = backends.serial.write if backends.serial is not None else _drop
            return SimMachine(events, write, vcpus=vcpus, max_vcpus=config.cpus.max)

        def check() -> None:
            """It needs no file."""
    else:
        from vmservice.kvm.system import Kvm
        from vmservice.service.guest_credentials import collect
        from vmservice.vm.builder import build as build_machine
        from vmservice.vm.host_services import HostServices
        from vmservice.vm.vcpu import install_kick_handler

        def tell_room(console: str) -> None:
            vm.on_input_room(console)

        install_kick_handler()
        kvm = Kvm()
        closers.append(kvm.close)
        host = HostServices(
            kvm,
            events,
            timers,
            backends,
            on_input_room=tell_room,
            info=log.info,
            warn=log.warning,
            credentials=collect(config, log, told),
        )
        host.progress = progress

        def build(vcpus: int) -> Machine:
            return build_machine(config, host, vcpus)

        def check() -> None:
            check_files(config)

    vm = Vm(
        name=options.name,
        vcpus=config.cpus.boot,
        max_vcpus=config.cpus.max,
        memory_bytes=config.memory.size_bytes,
        build=build,
        call_later=timers.call_later,
        check=check,
        devices=backends.details,
        on_reset=config.service.on_reset,
        on_panic=config.service.on_panic,
        on_watchdog=config.service.on_watchdog,
        ready_by_guest=config.service.ready_by_guest and not options.simulate,
    )
    return vm


def _open_listener(options: RunOptions, config: Config, passed: list[tuple[str, int]]) -> GuestListener | None:
    """Where the guest's service manager says that it is ready; None where the guest is so once it runs."""
    if not config.service.ready_by_guest or options.simulate:
        return None
    from vmservice.host import guest_listener

    for number, (name, fd) in enumerate(passed):
        if name == guest_listener.PASSED_NAME:
            del passed[number]
            return guest_listener.open_listener(fd)
    return guest_listener.open_listener(-1)


def _passed_sockets() -> list[tuple[str, int]]:
    if "LISTEN_FDS" not in os.environ:
        return []
    from vmservice.host.listen_fds import take_listen_fds

    return take_listen_fds()


def _drop(_data: bytes) -> None:
    """What a guest without a console says."""
