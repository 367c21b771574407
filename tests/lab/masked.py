"""Runs in the lab's host: masked.py CONFIG TIMEOUT [CAPABILITY…] runs the guest of CONFIG in this process until it powers off,
on a KVM that is made to lack the capabilities (names of <linux/kvm.h>).

Prints at the end "masked: " with what the machine was built of. Ends with 0 for a power-off.
"""

from __future__ import annotations

import select
import sys
import time

sys.path.append("/usr/lib/python3/dist-packages")

from vmservice.board.timers import Timers
from vmservice.config.load import load_config
from vmservice.host.consoles.mover import Mover
from vmservice.kvm import abi
from vmservice.kvm.system import Kvm
from vmservice.plug.backend import Backends, Host
from vmservice.vm.builder import build
from vmservice.vm.events import EventKind, EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.vcpu import install_kick_handler


def say(text: str) -> None:
    print(f"masked: {text}", flush=True)


class Log:
    def info(self, text: str) -> None:
        say(text)

    def warning(self, text: str) -> None:
        say(text)


def main(path: str, timeout_sec: float, capabilities: list[str]) -> int:
    config = load_config("masked", path)
    install_kick_handler()
    events = EventQueue()
    timers = Timers()
    kvm = Kvm(masked=tuple(getattr(abi, f"KVM_CAP_{name}") for name in capabilities))
    mover = Mover()
    backends = Backends(config, Host("masked", Log(), mover, []))
    host = HostServices(kvm, events, timers, backends, on_input_room=say, info=say, warn=say)
    machine = build(config, host, config.cpus.boot)
    try:
        machine.start()
        event = _next_event(events, timers, time.monotonic() + timeout_sec)
    finally:
        machine.close()
        backends.close()
        mover.close()
    say(f"{'our IOAPIC' if machine.board.ioapic is not None else 'the IOAPIC of KVM'}; ended by {event}")
    return 0 if event == EventKind.POWEROFF else 1


def _next_event(events: EventQueue, timers: Timers, deadline: float) -> str:
    """What ends the guest; what its devices want done is done meanwhile."""
    while time.monotonic() < deadline:
        due = timers.run_due()
        wait_sec = 1.0 if due is None else min(max(due - time.monotonic(), 0.0), 1.0)
        select.select([events.fd, timers.fd], [], [], wait_sec)
        for event in events.drain():
            if event.call is not None:
                event.call()
            if event.kind in (EventKind.POWEROFF, EventKind.RESET, EventKind.ERROR, EventKind.BUG):
                return f"{event.kind}{': ' * bool(event.detail)}{event.detail}"
    return "the timeout"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
