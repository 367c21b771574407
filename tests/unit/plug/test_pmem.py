"""Persistent memory with its thread, worked by a driver: a flush is the file's, whatever the host does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.boards import make_board, make_services
from support.disks import TIMEOUT_SEC, run, waiting
from support.guest_ram import guest_ram
from support.virtqueue import Driver, DriverQueue

from vmservice.board.slot import Slot
from vmservice.board.timers import Timers
from vmservice.config.sections.pmem import PmemDevice
from vmservice.errors import ConfigError, HostError
from vmservice.host import file_watch
from vmservice.plug import pmem

MIB = 1 << 20
GIB = 1 << 30
DONE, FAILED = bytes(4), b"\xff\xff\xff\xff"


class Machine:
    """The device of `file`, opened and plugged in. `warnings` is the journal, `faults` what has ended the guest."""

    def __init__(self, file: Path, *, readonly: bool = False) -> None:
        self.section = PmemDevice("data", str(file), readonly=readonly)
        self.backend = pmem.open(self.section, SimpleNamespace())  # type: ignore[arg-type]
        self.memory, self.timers = guest_ram(), Timers()
        self.warnings: list[str] = []
        self.faults: list[str] = []
        self.faulted = threading.Event()
        board = make_board(self.memory, timers=self.timers, device_memory=[pmem.memory_bytes(self.backend)])
        services = make_services(board, self.memory, self.timers, warn=self.warnings.append, fault=self.fault)
        self.plug = pmem.build(self.section, self.backend, Slot("data", services, self.place))
        self.queue: DriverQueue

    def fault(self, reason: str) -> None:
        self.faults.append(reason)
        self.faulted.set()

    def place(self, slot: Slot, device: Any, rings: Any) -> Any:
        self.driver = Driver(device, self.memory, rings=rings, lock=slot.lock)
        virtio = self.driver.transport
        return SimpleNamespace(virtio=virtio, state=virtio.state, start=virtio.start, close=virtio.close)

    def start(self) -> None:
        self.plug.start()
        with self.plug.lock:
            (self.queue,) = self.driver.start()

    def ask(self) -> None:
        self.queue.add([bytes(4)], [4])
        with self.plug.lock:
            self.driver.kick()

    def answer(self) -> bytes:
        for _ in waiting():
            for _, _, data in self.queue.take_used():
                return data
        raise AssertionError("no answer came")

    def close(self) -> None:
        self.plug.close()
        self.memory.close()
        self.timers.close()
        self.backend.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"data".ljust(2 * MIB, b"\0"))
    return path


@pytest.fixture
def machine(file: Path) -> Iterator[Machine]:
    machine = Machine(file)
    yield machine
    machine.close()


def test_a_flush_is_the_files(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, str]] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: flushed.append((fd, threading.current_thread().name)))
    machine.start()
    machine.memory.write(4 * GIB, b"new")
    machine.ask()
    assert machine.answer() == DONE
    ((fd, thread),) = flushed
    assert fd == machine.backend.fd
    assert thread != threading.main_thread().name, "no vCPU waits for it"
    assert machine.warnings == machine.faults == []
    assert machine.plug.stats() == {"flushes": 1, "errors": 0}
    shown = {"path": machine.section.path, "size": 2 * MIB, "readonly": False}
    assert pmem.details(machine.section, machine.backend) == {"data": shown}


def test_an_error_of_the_host_is_an_error_of_the_guests_and_a_line_a_minute(
    machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    machine.start()
    for _ in range(3):
        machine.ask()
        assert machine.answer() == FAILED
    said = f"pmem data: {file} cannot be flushed, which the guest is told: Input/output error"
    assert machine.warnings == [said]
    assert machine.plug.stats() == {"flushes": 3, "errors": 3}
    assert not machine.driver.is_broken


def test_a_pause_waits_for_the_flush_that_is_under_way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        begun.set()
        assert go_on.wait(TIMEOUT_SEC)

    monkeypatch.setattr(os, "fdatasync", slow)
    machine.start()
    machine.ask()
    assert begun.wait(TIMEOUT_SEC)
    timer = threading.Timer(0.05, go_on.set)
    timer.start()
    machine.plug.pause()
    assert go_on.is_set()
    assert [data for _, _, data in machine.queue.take_used()] == [DONE]
    timer.join()
    machine.ask()
    begun.clear()
    machine.plug.resume()
    assert machine.answer() == DONE


def test_whoever_cuts_the_file_short_ends_the_guest(machine: Machine, file: Path) -> None:
    machine.start()
    assert machine.plug.explain() == ""
    os.truncate(file, 2 * MIB)
    os.truncate(file, 4 * MIB)  # more is no harm
    assert not machine.faults
    os.truncate(file, 4096)
    assert machine.faulted.wait(TIMEOUT_SEC)
    assert machine.faults[0] == "the guest's memory has lost pages"
    assert machine.plug.explain() == f"; somebody has cut short {file}, which is its pmem data"


def test_a_file_that_was_cut_short_before_the_start(machine: Machine, file: Path) -> None:
    os.truncate(file, 4096)
    assert machine.faults == []
    machine.start()
    assert machine.faults == ["the guest's memory has lost pages"]


def test_a_file_that_cannot_be_watched_is_used_all_the_same(
    machine: Machine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "_libc", SimpleNamespace(inotify_init1=lambda flags: -1))
    machine.start()
    assert f"whoever cuts {file} short may end the VM by SIGBUS" in machine.warnings[0]
    machine.ask()
    assert machine.answer() == DONE


def test_a_block_device(device: Path, backing: Path) -> None:
    machine = Machine(device)
    machine.start()
    machine.memory.write(4 * GIB + 4096, b"through")
    machine.ask()
    assert machine.answer() == DONE
    assert backing.read_bytes()[4096:4103] == b"through"
    assert machine.memory.end == 4 * GIB + 8 * MIB
    machine.close()
    os.truncate(backing, 9 * MIB)
    run("losetup", "--set-capacity", str(device))
    with pytest.raises(ConfigError, match=rf"^pmem data: {device} has 9437184 bytes; expected a multiple of 2 MiB"):
        Machine(device)


def test_what_cannot_be_placed_leaves_nothing_behind(file: Path) -> None:
    backend = pmem.open(PmemDevice("data", str(file)), SimpleNamespace())  # type: ignore[arg-type]
    memory, timers = guest_ram(), Timers()
    board = make_board(memory, timers=timers, device_memory=[2 * MIB])
    services = make_services(board, memory, timers)

    class Full:
        def region_added(self, region: Any) -> None:
            if not region.is_ram:
                raise HostError("there is no slot left")

        def region_removed(self, region: Any) -> None:
            pytest.fail("it was not there")

    memory.listen(Full())
    slot = Slot("data", services, lambda *_: pytest.fail("it is placed"))
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="there is no slot left"):
        pmem.build(PmemDevice("data", str(file)), backend, slot)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert memory.end == 2 * MIB
    memory.close()
    timers.close()
    backend.close()
