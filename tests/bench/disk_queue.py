"""A disk's virtqueue without a guest: requests a second, and what each costs the host, ours beside qemu-storage-daemon.

    disk_queue.py IMAGE RUNS      of a raw image of at least 64 MiB, which is written to

The driver is a process of its own, over the same memory; notifications and interrupts are eventfds, as with KVM. Prints what
rows.py says. The image's file system has to take O_DIRECT for the rows of that.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# Run as a script: its own folder gives way to tests/, so that `bench` is the folder.
if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from bench.rows import fail, note
from support.disks import Disk, section
from support.vhost_user_double import CONFIG_BYTES
from support.virtqueue import INDIRECT, NEXT, QUEUES_GPA, WRITE, Driver, DriverQueue

from vmservice.board.vhost_user_rings import VhostUserRings
from vmservice.devices.virtio.external import External, ExternalState
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.memory import backing
from vmservice.memory.guest_memory import GuestMemory

MIB = 1 << 20
RAM_BYTES = 8 * MIB
PLACES_GPA = 4 * MIB  # a page each for the header, the table and the status of a request, and one for its data
PLACE_BYTES = 8192
QUEUE_SIZE = 128
SPAN_BYTES = 64 * MIB
BLOCK_BYTES = 4096
DEPTHS = (1, 8, 32)
RUN_SEC = 2.0
KINDS = {"read": 0, "write": 1}


def drive(memory_fd: int, kick: int, call: int, kind: int, depth: int, seconds: float) -> int:
    """Keep `depth` requests in flight; how many were done."""
    ram = mmap.mmap(memory_fd, RAM_BYTES)
    queue = DriverQueue(Ram(ram), QUEUES_GPA, QUEUE_SIZE, 1 << 29)  # type: ignore[arg-type]
    for number in range(depth):
        place = PLACES_GPA + number * PLACE_BYTES
        entries = [
            (place, 16, NEXT, 1),
            (place + 4096, BLOCK_BYTES, NEXT | (0 if kind else WRITE), 2),
            (place + 512, 1, WRITE, 0),
        ]
        for index, entry in enumerate(entries):
            struct.pack_into("<QIHH", ram, place + 1024 + 16 * index, *entry)
        queue.describe(number, place + 1024, 48, INDIRECT)
    view = memoryview(ram)
    available = view[queue.available : queue.available + 6 + 2 * QUEUE_SIZE].cast("H")
    used_index = view[queue.used : queue.used + 4].cast("H")
    used = view[queue.used + 4 : queue.used + 4 + 8 * QUEUE_SIZE].cast("I")
    avail_event = view[queue.used + 4 + 8 * QUEUE_SIZE :][:2].cast("H")
    sectors = [8 * random.randrange(SPAN_BYTES // BLOCK_BYTES) for _ in range(4096)]
    begin = available[1]  # where the last run ended
    free, sent, done, end = list(range(depth)), begin, begin, time.monotonic() + seconds
    is_over = False
    while not is_over or sent > done:
        is_over = is_over or time.monotonic() > end
        before = sent
        while free and not is_over:
            number = free.pop()
            struct.pack_into("<IIQ", ram, PLACES_GPA + number * PLACE_BYTES, kind, 0, sectors[sent & 4095])
            available[2 + sent % QUEUE_SIZE] = number
            sent += 1
        available[1] = sent & 0xFFFF
        if sent > before and (sent - avail_event[0] - 1) & 0xFFFF < sent - before:
            os.eventfd_write(kick, 1)
        available[2 + QUEUE_SIZE] = done & 0xFFFF  # to be told of the next one
        if sent > done and used_index[1] == done & 0xFFFF:
            select.select([call], [], [])
            os.eventfd_read(call)
        while used_index[1] != done & 0xFFFF:
            number = used[2 * (done % QUEUE_SIZE)]
            assert ram[PLACES_GPA + number * PLACE_BYTES + 512] == 0, "a request failed"
            free.append(number)
            done += 1
    return done - begin


class Ram:
    """As much of guest memory as a DriverQueue needs."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping

    def read(self, gpa: int, size: int) -> bytes:
        return self._mapping[gpa : gpa + size]

    def write(self, gpa: int, data: bytes) -> None:
        self._mapping[gpa : gpa + len(data)] = data


def run(memory: GuestMemory, kick: int, call: int, kind: str, depth: int, seconds: float, server: int) -> tuple[float, float]:
    """Requests a second, and microseconds of processor time that each costs the process `server`."""
    before = cpu_sec(server)
    arguments = [str(number) for number in (memory.fd, kick, call, KINDS[kind], depth, seconds)]
    driver = [sys.executable, __file__, "drive", *arguments]
    said = subprocess.run(driver, pass_fds=[memory.fd, kick, call], stdout=subprocess.PIPE, text=True, check=True)
    done = int(said.stdout)
    return done / seconds, (cpu_sec(server) - before) / done * 1e6


def cpu_sec(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def ours(image: Path, *, direct: bool) -> Iterator[tuple[GuestMemory, int, int, int]]:
    sys.setswitchinterval(0.0001)  # as the service has it
    memory = backing.allocate([(0, RAM_BYTES)], shared=True)
    disk = Disk(section(image, is_direct=direct), memory=memory)
    call = os.eventfd(0)
    disk.driver.interrupt.queue_eventfd = lambda index: call  # type: ignore[method-assign]
    disk.start(sizes=[QUEUE_SIZE])
    try:
        yield memory, disk.plug._rings.kicks[0], call, os.getpid()  # type: ignore[attr-defined]
    finally:
        disk.close()
        os.close(call)


@contextmanager
def daemons(image: Path, *, direct: bool) -> Iterator[tuple[GuestMemory, int, int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        cache = "cache.direct=on,aio=native" if direct else "cache.direct=off,aio=threads"
        file = f"driver=file,node-name=f,filename={image},{cache}"
        export = f"type=vhost-user-blk,id=e,node-name=r,writable=on,addr.type=unix,addr.path={path}"
        command = ["qemu-storage-daemon", "--blockdev", file, "--blockdev", "driver=raw,node-name=r,file=f", "--export", export]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        memory = backing.allocate([(0, RAM_BYTES)], shared=True)
        link = BackEndLink(path, "qemu-storage-daemon", CONFIG_BYTES, "start it")
        call = os.eventfd(0)
        try:
            while not os.path.exists(path):
                time.sleep(0.01)
            link.open(10.0)
            state = ExternalState(link.features & 0x1244, [QUEUE_SIZE] * link.queues, link.config)
            rings = VhostUserRings(
                "disk",
                link.queues,
                link,
                memory,
                is_volatile=False,
                on_config=lambda config: None,
                warn=print,
                bug=print,
                settle_sec=5.0,
            )
            driver = Driver(External(2, state), memory, rings=rings)
            driver.interrupt.queue_eventfd = lambda index: call  # type: ignore[method-assign]
            rings.begin()
            with driver.transport.lock:
                driver.start()
            try:
                yield memory, rings.kicks[0], call, process.pid
            finally:
                driver.transport.close()
                rings.close()
        finally:
            link.close()
            process.terminate()
            process.wait(30)
            memory.close()
            os.close(call)


def main(arguments: list[str]) -> None:
    if arguments[0] == "drive":
        memory_fd, kick_fd, call_fd, request, in_flight = map(int, arguments[1:6])
        print(drive(memory_fd, kick_fd, call_fd, request, in_flight, float(arguments[6])))
        return
    image, runs = Path(arguments[0]), int(arguments[1])
    with image.open("rb") as file:
        file.read(SPAN_BYTES)  # into the page cache
    for direct in (False, True):
        for _ in range(runs):
            for side, opened in (("vmservice", ours), ("peer", daemons)):
                try:
                    measure(side, opened(image, direct=direct), "direct" if direct else "page cache")
                except Exception as error:  # the other side may do
                    fail(f"a disk's virtqueue, {side}", error)


def measure(side: str, opened: AbstractContextManager[tuple[GuestMemory, int, int, int]], cache: str) -> None:
    with opened as (memory, kick, call, server):
        for kind in KINDS:
            for depth in DEPTHS:
                rate, cost_us = run(memory, kick, call, kind, depth, RUN_SEC, server)
                row = f"virtqueue, 4 KiB {kind}, {cache}, depth {depth}"
                note(f"{row}, requests/s", side, rate)
                note(f"{row}, host CPU ms for 1,000", side, cost_us)


if __name__ == "__main__":
    main(sys.argv[1:])
