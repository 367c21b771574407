"""Runs in the lab's host: restored.py CONFIG LOG BEFORE AFTER runs the guest of CONFIG in this process until LOG, the file
that its console is in, has BEFORE; then another machine goes on from the state of the first, until LOG has AFTER.

Prints at the end "restored: " with what was warned of. Ends with 0 when AFTER came.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
import time

sys.path.append("/usr/lib/python3/dist-packages")

from vmservice.board.timers import Timers
from vmservice.config.load import load_config
from vmservice.host.consoles.mover import Mover
from vmservice.kvm.system import Kvm
from vmservice.memory.guest_memory import GuestMemory, Region
from vmservice.plug.backend import Backends, Host
from vmservice.vm import builder, state_tree
from vmservice.vm.events import EventQueue
from vmservice.vm.host_services import HostServices
from vmservice.vm.vcpu import install_kick_handler

_TIMEOUT_SEC = 240.0


def say(text: str) -> None:
    print(f"restored: {text}", flush=True)


class Log:
    def info(self, text: str) -> None:
        say(text)

    def warning(self, text: str) -> None:
        say(text)


def main(path: str, log: str, before: str, after: str) -> int:
    config = load_config("restored", path)
    install_kick_handler()
    events, timers, kvm, mover = EventQueue(), Timers(), Kvm(), Mover()
    backends = Backends(config, Host("restored", Log(), mover, []))
    host = HostServices(kvm, events, timers, backends, on_input_room=say, info=say, warn=say)
    machine = builder.build(config, host, config.cpus.boot)
    try:
        machine.start()
        came = _wait_for(log, before, events, timers)
        if came:
            machine.pause()
            tree = json.dumps(state_tree.collect(machine, kvm))
            memory = _same_memory(machine.memory)
            machine.close()
            machine = builder.restore(config, host, json.loads(tree), memory)
            machine.start()
            came = _wait_for(log, after, events, timers)
    finally:
        machine.close()
        backends.close()
        mover.close()
    return 0 if came else 1


def _same_memory(memory: GuestMemory) -> GuestMemory:
    """The same pages, mapped once more: guest memory is a memfd."""
    fd, offset, regions = os.dup(memory.fd), 0, []
    for region in memory.regions:
        mapping = mmap.mmap(fd, region.size_bytes, flags=mmap.MAP_SHARED, offset=offset)
        regions.append(Region(region.gpa, mapping, mmap.MADV_REMOVE, fd=fd, offset=offset))
        offset += region.size_bytes
    return GuestMemory(regions, fd)


def _wait_for(log: str, text: str, events: EventQueue, timers: Timers) -> bool:
    """Whether the guest says it in time; what its devices want done is done meanwhile."""
    deadline = time.monotonic() + _TIMEOUT_SEC
    while time.monotonic() < deadline:
        due = timers.run_due()
        wait_sec = 0.2 if due is None else min(max(due - time.monotonic(), 0.0), 0.2)
        select.select([events.fd, timers.fd], [], [], wait_sec)
        for event in events.drain():
            if event.call is not None:
                event.call()
        with open(log, encoding="utf-8", errors="replace") as file:
            if text in file.read():
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
