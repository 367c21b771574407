"""A disk of ours with its threads, worked by the driver-side virtqueue: no guest, no KVM."""

from __future__ import annotations

import _thread
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.guest_ram import MIB, guest_ram
from support.virtqueue import Driver, DriverQueue

from vmservice.config.sections.disk import DiskDevice
from vmservice.memory.guest_memory import GuestMemory
from vmservice.plug import disk

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"

TIMEOUT_SEC = 60.0


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return struct.pack("<QII", sector, sectors, flags)


class DiskSlot:
    """What a plug sees of a slot; `driver` works the device that was placed here. `warnings` is the journal."""

    def __init__(self, tree: dict[str, Any] | None = None, memory: GuestMemory | None = None) -> None:
        self.label = "root"
        self.tree = tree or {}
        self.lock = _thread.allocate_lock()
        self.memory = memory or guest_ram((0, 2 * MIB))
        self.warnings: list[str] = []
        self.warn = self.warnings.append
        self.driver: Driver | None = None

    def bug(self, error: Exception) -> None:
        self.warn(f"internal error: {error!r}")

    def state_of(self, kind: Any) -> Any:
        return kind.from_values(self.tree["device"]) if self.tree else None

    def place(self, device: Any, rings: Any) -> Any:
        self.driver = Driver(device, self.memory, rings=rings, lock=self.lock)
        virtio = self.driver.transport
        return SimpleNamespace(virtio=virtio, state=virtio.state, start=virtio.start, close=virtio.close)


class Disk:
    """The disk of `section`, opened and plugged in; `queues` are its driver's after `start`."""

    def __init__(self, section: DiskDevice, memory: GuestMemory | None = None) -> None:
        self.section = section
        self.log: list[str] = []
        self.backend = disk.open(section, SimpleNamespace(log=SimpleNamespace(warning=self.log.append, info=self.log.append)))  # type: ignore[arg-type]
        self.slot = DiskSlot(memory=memory)
        self.plug = disk.build(section, self.backend, self.slot)  # type: ignore[arg-type]
        assert isinstance(self.plug, disk.DiskPlug)
        assert self.slot.driver is not None
        self.driver = self.slot.driver
        self.queues: list[DriverQueue] = []

    def start(self, features: int | None = None, sizes: Sequence[int] = ()) -> DriverQueue:
        self.plug.start()
        with self.slot.lock:
            self.queues = self.driver.start(features, sizes=sizes)
        return self.queues[0]

    def kick(self, index: int = 0) -> None:
        with self.slot.lock:
            self.driver.kick(index)

    def ask(self, readable: Sequence[bytes], writable: Sequence[int], queue: int = 0) -> bytes:
        """One request, and all that the device has written: the status comes last."""
        self.queues[queue].add(readable, writable)
        self.kick(queue)
        ((_, written, data),) = self.answers(1, queue)
        assert written == len(data)
        return data

    def answers(self, count: int, queue: int = 0) -> list[tuple[int, int, bytes]]:
        taken: list[tuple[int, int, bytes]] = []
        for _ in waiting():
            taken += self.queues[queue].take_used()
            if len(taken) >= count:
                return taken
        raise AssertionError(f"{len(taken)} of {count} answers came")

    def read(self, sector: int, size: int) -> bytes:
        return self.ask([header(IN, sector)], [size, 1])

    def write(self, sector: int, data: bytes) -> bytes:
        return self.ask([header(OUT, sector), data], [1])

    def close(self) -> None:
        self.plug.close()
        self.slot.memory.close()
        self.backend.close()


def waiting() -> Iterator[None]:
    deadline = time.monotonic() + TIMEOUT_SEC
    while time.monotonic() < deadline:
        yield
        time.sleep(0.0005)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def section(path: Path, **keys: Any) -> DiskDevice:
    return DiskDevice("root", str(path), **keys)
