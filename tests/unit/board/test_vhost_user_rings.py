"""Virtqueues that another process serves: by a back end of the test's own, which dies wherever it can, and by the real one.

qemu-storage-daemon is killed at each stage; a VM goes on with each, and nothing hangs.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.quiet import check_nothing_runs
from support.storage_daemon import StorageDaemon
from support.vhost_user_double import CONFIG_BYTES, DiskBackEnd
from support.virtqueue import Driver, DriverQueue

from vmservice.board.vhost_user_rings import VhostUserRings
from vmservice.devices.virtio.external import External, ExternalState
from vmservice.devices.virtio.transport import VirtioTransport
from vmservice.host.vhost_user import DRAIN_SEC
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.memory import backing

MIB = 1 << 20
TIMEOUT_SEC = 30.0
SECTOR = 512
IN, OUT, FLUSH = 0, 1, 4
QUEUE_SIZE = 128
NEEDS_RESET = 0x40


class Bench:
    """A driver with its device, whose back end is behind `path`."""

    def __init__(self, path: Path, *, is_volatile: bool = False, settle_sec: float = 5.0) -> None:
        self.memory = backing.allocate([(0, 2 * MIB), (4 << 30, MIB)], shared=True)
        self.link = BackEndLink(str(path), "the back end of disk0", CONFIG_BYTES, "start it")
        self.warnings: list[str] = []
        self.bugs: list[Exception] = []
        self.configs: list[bytes] = []
        self.rings: VhostUserRings | None = None
        self._is_volatile = is_volatile
        self._settle_sec = settle_sec

    def open(self) -> None:
        self.link.open(TIMEOUT_SEC)
        device = External(2, ExternalState(self.link.features & 0x1244, [QUEUE_SIZE] * self.link.queues, self.link.config))
        self.rings = VhostUserRings(
            "disk0",
            self.link.queues,
            self.link,
            self.memory,
            is_volatile=self._is_volatile,
            on_config=self.configs.append,
            warn=self.warnings.append,
            bug=self.bugs.append,
            settle_sec=self._settle_sec,
        )
        self.driver = Driver(device, self.memory, rings=self.rings)
        self.rings.begin()

    @property
    def transport(self) -> VirtioTransport:
        return self.driver.transport

    def start(self) -> list[DriverQueue]:
        with self.transport.lock:
            return self.driver.start()

    def serve(self) -> list[DriverQueue]:
        """Start, and wait until every virtqueue is served."""
        queues = self.start()
        for index in range(len(queues)):
            self.read(0, index)
            self.answers(index)
        assert self.rings is not None
        self.rings.refresh()  # by the thread, which has handed over all of them before
        return queues

    def read(self, sector: int, index: int = 0, sectors: int = 1) -> None:
        self.ask(index, IN, sector, [], [sectors * SECTOR])

    def write(self, sector: int, data: bytes, index: int = 0) -> None:
        self.ask(index, OUT, sector, [data], [])

    def ask(self, index: int, kind: int, sector: int, readable: list[bytes], writable: list[int]) -> None:
        self.driver.queues[index].add([struct.pack("<IIQ", kind, 0, sector), *readable], [*writable, 1], indirect=True)
        self.driver.kick(index)

    def answers(self, index: int = 0, count: int = 1) -> list[bytes]:
        """The data and the status byte of the next requests that are done."""
        queue, taken = self.driver.queues[index], []
        for _ in wait():
            taken += [data for _, _, data in queue.take_used()]
            if len(taken) >= count:
                return taken
        raise AssertionError(f"{len(taken)} of {count} answers came; {self.warnings} {self.driver.warnings} {self.bugs}")

    def broken(self) -> str:
        """Wait until the driver is told that the device needs a reset; the warning."""
        for _ in wait():
            self.driver.run_posted()
            if self.transport.status & NEEDS_RESET:
                return self.driver.warnings[-1]
        raise AssertionError(f"the device is whole; {self.warnings} {self.bugs}")

    def close(self) -> None:
        if self.rings is not None:
            self.transport.close()
            self.rings.close()
        self.link.close()
        self.memory.close()
        assert self.bugs == []


def wait() -> Iterator[None]:
    deadline = time.monotonic() + TIMEOUT_SEC
    while time.monotonic() < deadline:
        yield
        time.sleep(0.001)


def until(holds: Callable[[], object]) -> None:
    assert any(holds() for _ in wait())


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskBackEnd]:
    disk = DiskBackEnd(tmp_path / "socket")
    yield disk
    disk.close()


@contextmanager
def bench_of(path: Path, *, is_volatile: bool, settle_sec: float = 0.2) -> Iterator[Bench]:
    bench = Bench(path, is_volatile=is_volatile, settle_sec=settle_sec)
    try:
        bench.open()
        yield bench
    finally:
        bench.close()


@pytest.fixture
def bench(disk: DiskBackEnd, tmp_path: Path) -> Iterator[Bench]:
    with bench_of(tmp_path / "socket", is_volatile=False) as bench:
        yield bench


# With a back end of the test's own


def test_requests_are_served_and_the_driver_is_interrupted(bench: Bench, disk: DiskBackEnd) -> None:
    disk.disk[SECTOR : 2 * SECTOR] = b"x" * SECTOR
    bench.start()
    for index in (0, 1):
        bench.driver.interrupt.take()
        bench.read(1, index)
        # First: one who looks before the interrupt comes has said not to need it.
        until(lambda: bench.driver.run_posted() or bench.driver.interrupt.queues)
        assert bench.answers(index) == [b"x" * SECTOR + b"\0"]


def test_a_pause_takes_the_virtqueues_back_and_a_resume_goes_on(bench: Bench) -> None:
    bench.serve()
    for _ in range(4):
        bench.read(0)
        bench.answers()
    assert bench.transport.stop()
    state = bench.transport.state.queues[0]
    assert (state.next_available, state.next_used, state.published_used) == (5, 5, 5)
    bench.read(0)
    bench.transport.start()
    assert len(bench.answers()) == 1


def test_a_pause_waits_for_requests_in_flight(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.gate_is_open = False
    for _ in range(32):
        bench.read(0)
    until(lambda: disk.taken() == 32)
    assert bench.rings is not None and not bench.rings.stop(0.5)
    disk.open_gate()
    assert bench.transport.stop()
    assert bench.transport.state.queues[0].next_available == bench.driver.queues[0].used_index() == 33


def test_a_pause_that_is_taken_back_changes_nothing(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.gate_is_open = False
    bench.read(0)
    until(disk.taken)
    assert bench.rings is not None and not bench.rings.stop(0.05)
    bench.rings.go_on()
    bench.read(1)
    disk.open_gate()
    assert len(bench.answers(count=2)) == 2


def test_a_request_that_is_never_done_does_not_keep_a_machine_from_its_end(bench: Bench, disk: DiskBackEnd) -> None:
    """As when a driver leaves out the status byte: the back end forgets the request."""
    bench.serve()
    disk.gate_is_open = False
    bench.read(0)
    until(disk.taken)
    assert bench.rings is not None and not bench.rings.stop(0.05)
    until(lambda: disk.is_idle)
    bench.rings.abandon()
    assert bench.transport.stop()
    assert "does not end what it has begun, with one request in flight" in bench.broken()


def test_a_reset_of_the_device_keeps_the_connection(bench: Bench, disk: DiskBackEnd) -> None:
    for _ in range(3):
        bench.serve()
    assert disk.connections == 1


@pytest.mark.parametrize("step", [2, 5, 8, 10, 9, 13, 14, 12, 18])
def test_a_back_end_that_dies_while_it_is_handed_the_virtqueues(disk: DiskBackEnd, tmp_path: Path, step: int) -> None:
    with bench_of(tmp_path / "socket", is_volatile=True) as bench:
        disk.dies_at = {step}
        bench.start()
        assert "cannot be served until its next reset: the back end of disk0" in bench.broken()
        disk.dies_at = set()
        bench.serve()


def test_a_back_end_that_dies_idle_is_found_again_and_nothing_is_lost(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.cut()
    until(lambda: disk.connections == 2 and disk.taken_up)
    bench.read(0)
    assert len(bench.answers()) == 1
    said = "the back end of disk0 has ended, with no request in flight; it is connected to anew, and nothing is lost"
    assert bench.warnings == [said]
    assert not bench.driver.is_broken


def test_a_volatile_back_end_that_dies_idle_takes_along_what_it_had_not_stored(disk: DiskBackEnd, tmp_path: Path) -> None:
    with bench_of(tmp_path / "socket", is_volatile=True) as bench:
        bench.serve()
        disk.cut()
        said = bench.broken()
        assert "ended, with no request in flight; what it had done and not stored yet is lost" in said
        bench.serve()


def test_a_volatile_back_end_that_dies_while_the_machine_is_paused(disk: DiskBackEnd, tmp_path: Path) -> None:
    with bench_of(tmp_path / "socket", is_volatile=True) as bench:
        bench.serve()
        assert bench.transport.stop()
        bench.transport.start()
        bench.read(0)
        bench.answers()
        assert bench.transport.stop()
        disk.cut()
        until(lambda: bench.link.front is None)
        bench.transport.start()
        assert "has ended while the virtual machine was paused" in bench.broken()


def test_a_back_end_that_dies_over_and_over_is_given_up(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.cut()
    until(lambda: disk.connections == 2 and disk.taken_up)
    bench.read(0)
    bench.answers()
    disk.cut()
    assert "has ended, with no request in flight" in bench.broken()


def test_a_back_end_that_dies_with_requests_in_flight(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.gate_is_open = False
    for _ in range(3):
        bench.read(0)
    until(lambda: disk.taken() == 3)
    disk.cut()
    said = bench.broken()
    assert "the back end of disk0 has ended, with 3 requests in flight; whether they were done is not known" in said
    disk.gate_is_open = True
    bench.start()
    bench.read(0)
    assert len(bench.answers()) == 1


def test_a_back_end_that_dies_while_the_machine_is_paused(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    assert bench.transport.stop()
    disk.cut()
    until(lambda: bench.link.front is None)
    bench.read(0)
    bench.transport.start()
    assert len(bench.answers()) == 1
    assert disk.connections == 2


def test_a_back_end_that_dies_while_it_is_asked_for_the_virtqueues(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.dies_at = {11}
    assert bench.transport.stop()
    assert "has closed the connection, with no request in flight" in bench.broken()


def test_a_back_end_that_is_gone_for_good(bench: Bench, disk: DiskBackEnd, tmp_path: Path) -> None:
    bench.start()
    assert bench.transport.stop()
    (tmp_path / "socket").unlink()
    disk.cut()
    until(lambda: bench.link.front is None)
    bench.transport.start()
    said = bench.broken()
    assert f"cannot be reached at {tmp_path}/socket: No such file or directory; start it" in said


def test_a_back_end_that_comes_back_as_another_device(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.features &= ~(1 << 9)
    disk.cut()
    assert "has come back as another device" in bench.broken()


def test_a_back_end_that_hangs_is_not_waited_for_at_the_end(disk: DiskBackEnd, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "socket")
    bench.open()
    bench.serve()
    disk.silent_at = {11}
    assert bench.rings is not None and not bench.rings.stop(0.05)
    began = time.monotonic()
    bench.rings.close()
    assert time.monotonic() - began < DRAIN_SEC / 2
    assert bench.rings.stop(0)
    bench.close()


def test_no_vcpu_waits_for_a_back_end_that_hangs(disk: DiskBackEnd, tmp_path: Path) -> None:
    with bench_of(tmp_path / "socket", is_volatile=True) as bench:
        disk.silent_at = {2}
        assert bench.link.front is not None
        bench.link.front.reply_sec = DRAIN_SEC
        began = time.monotonic()
        bench.start()
        assert time.monotonic() - began < DRAIN_SEC / 2
        until(lambda: 2 in disk.received)
        disk.cut()
        assert "has closed the connection" in bench.broken()


def test_a_back_end_that_hangs_is_given_up(disk: DiskBackEnd, tmp_path: Path) -> None:
    with bench_of(tmp_path / "socket", is_volatile=True) as bench:
        disk.silent_at = {2}
        assert bench.link.front is not None
        bench.link.front.reply_sec = 0.1
        bench.start()
        assert "does not answer in time" in bench.broken()


def test_the_end_waits_for_no_back_end_that_hangs_again_and_again(
    bench: Bench, disk: DiskBackEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an answer the owner's thread would wait longer than `stop` waits for the thread."""
    monkeypatch.setattr("vmservice.host.vhost_user_link.REPLY_SEC", DRAIN_SEC)
    assert bench.link.front is not None
    bench.link.front.reply_sec = DRAIN_SEC
    disk.silent_at = {2}
    bench.start()
    until(lambda: 2 in disk.received)
    disk.cut()
    until(lambda: disk.received.count(2) == 2)
    assert bench.rings is not None
    bench.rings.abandon()
    assert bench.transport.stop()


def test_the_configuration_follows_the_back_end(bench: Bench, disk: DiskBackEnd) -> None:
    bench.serve()
    disk.change_capacity(128)
    until(lambda: struct.unpack_from("<Q", bench.configs[-1]) == (128,))


def test_memory_is_shown_as_it_comes_and_taken_as_it_goes(bench: Bench, disk: DiskBackEnd) -> None:
    bench.start()
    bench.read(0)
    bench.answers()
    more = backing.allocate([(8 << 30, MIB)], shared=True)
    bench.memory.add(more.regions[0])
    assert disk.received[-1] == 37
    bench.memory.remove(8 << 30)
    assert disk.received[-1] == 38
    more.close()
    bench.read(0)
    assert len(bench.answers()) == 1


def test_nothing_runs_when_there_is_nothing_to_do(bench: Bench) -> None:
    bench.serve()
    check_nothing_runs()


# With the real one


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(tmp_path, qmp=True)
    yield daemon
    daemon.close()


@pytest.fixture
def real(daemon: StorageDaemon) -> Iterator[Bench]:
    daemon.start()
    with bench_of(daemon.path, is_volatile=True) as bench:
        yield bench


def test_real_data_comes_back(real: Bench) -> None:
    real.serve()
    real.write(8, b"written" * 512, index=1)
    assert real.answers(1) == [b"\0"]
    real.read(8, sectors=7)
    until(lambda: real.driver.run_posted() or 0 in real.driver.interrupt.queues)
    assert real.answers() == [b"written" * 512 + b"\0"]


def test_real_reads_in_flight_are_done_when_it_is_paused(tmp_path: Path) -> None:
    """It answers at once that it has stopped, and goes on writing into guest memory until the last one is done."""
    daemon = StorageDaemon(tmp_path, requests_per_sec=30)
    daemon.start()
    try:
        with bench_of(daemon.path, is_volatile=True) as bench:
            queue = bench.serve()[0]
            for number in range(32):
                bench.read(number)
            until(lambda: queue.used_index() > 1)  # it has taken them all, and has two or more done
            assert bench.rings is not None
            if bench.rings.stop(0.02):  # on a slow host the last one may be done by then
                assert queue.used_index() == 33
            bench.rings.go_on()
            assert bench.transport.stop()
            state = bench.transport.state.queues[0]
            assert state.next_available == queue.used_index() == state.next_used
            taken = len(queue.take_used())
            bench.transport.start()
            if taken < 32:
                assert len(bench.answers(count=32 - taken)) == 32 - taken
            assert not bench.driver.is_broken
    finally:
        daemon.close()


def test_real_growth_is_seen(real: Bench, daemon: StorageDaemon) -> None:
    """With QEMU 8 and later at once. 7.2 shows another capacity only when it is started anew."""
    real.serve()
    qmp(daemon.qmp, "block_resize", {"node-name": "d", "size": 32 * MIB})
    if daemon.version() < 8:
        daemon.kill(signal.SIGTERM)
        daemon.start()
        real.broken()
        real.serve()
    until(lambda: struct.unpack_from("<Q", real.configs[-1])[0] == 32 * MIB // SECTOR)


def qmp(path: Path, command: str, arguments: dict[str, object]) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_SEC)
        client.connect(str(path))
        file = client.makefile("rw")
        file.readline()
        for request in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
            file.write(json.dumps(request) + "\n")
            file.flush()
            answer = json.loads(file.readline())
            assert "return" in answer, answer


def test_the_real_one_is_killed_before_it_is_connected_to(daemon: StorageDaemon) -> None:
    daemon.start()
    daemon.kill()
    daemon.start()
    with bench_of(daemon.path, is_volatile=True) as bench:
        bench.serve()


def test_the_real_one_is_killed_idle(real: Bench, daemon: StorageDaemon) -> None:
    """What it has answered is not in the image yet, so the driver must not go on as if it were."""
    real.serve()
    real.write(2, b"a" * SECTOR)
    assert real.answers() == [b"\0"]
    daemon.kill()
    daemon.start()
    said = real.broken()
    assert "has ended, with no request in flight; what it had done and not stored yet is lost" in said
    real.serve()
    real.read(2)
    assert real.answers() == [bytes(SECTOR + 1)]


def test_what_is_flushed_is_there_after_a_kill(real: Bench, daemon: StorageDaemon) -> None:
    real.serve()
    real.write(2, b"a" * SECTOR)
    assert real.answers() == [b"\0"]
    real.ask(0, FLUSH, 0, [], [])
    assert real.answers() == [b"\0"]
    daemon.kill()
    daemon.start()
    real.broken()
    real.serve()
    real.read(2)
    assert real.answers() == [b"a" * SECTOR + b"\0"]


def test_the_real_one_is_killed_idle_with_an_image_that_it_cannot_write_to(tmp_path: Path) -> None:
    daemon = StorageDaemon(tmp_path, readonly=True)
    daemon.start()
    try:
        with bench_of(daemon.path, is_volatile=False) as bench:
            bench.serve()
            daemon.kill()
            daemon.start()
            until(lambda: bench.warnings)
            bench.read(0)
            assert bench.answers() == [bytes(SECTOR + 1)]
            assert not bench.driver.is_broken
    finally:
        daemon.close()


@pytest.mark.parametrize("kind", ["reads", "writes"])
def test_the_real_one_is_killed_with_requests_in_flight(real: Bench, daemon: StorageDaemon, kind: str) -> None:
    real.serve()
    daemon.freeze()
    for number in range(32):
        ask = partial(real.write, number, b"b" * SECTOR) if kind == "writes" else partial(real.read, number)
        ask()
    daemon.kill()
    daemon.start()
    assert "has ended, with 32 requests in flight; whether they were done is not known" in real.broken()
    real.serve()


def test_the_real_one_is_killed_while_paused(real: Bench, daemon: StorageDaemon) -> None:
    real.serve()
    assert real.transport.stop()
    daemon.kill()
    daemon.start()
    real.transport.start()
    assert "has ended while the virtual machine was paused" in real.broken()
    real.serve()


def test_the_real_one_is_killed_while_the_guest_has_no_driver(real: Bench, daemon: StorageDaemon) -> None:
    real.serve()
    with real.transport.lock:
        real.transport.write_status(0)
    daemon.kill()
    daemon.start()
    real.serve()


def test_the_real_one_is_killed_during_the_resume(real: Bench, daemon: StorageDaemon) -> None:
    real.serve()
    assert real.transport.stop()
    daemon.freeze()
    real.transport.start()
    daemon.kill()
    daemon.start()
    assert "the back end of disk0" in real.broken()
    real.serve()


def test_the_real_one_is_killed_at_the_end(real: Bench, daemon: StorageDaemon) -> None:
    real.serve()
    daemon.freeze()
    real.read(0)
    daemon.kill()
    began = time.monotonic()
    real.transport.close()
    assert time.monotonic() - began < DRAIN_SEC / 2


def test_a_ring_that_lies_costs_the_connection_and_no_more(real: Bench, daemon: StorageDaemon) -> None:
    """The real one drops the connection of a driver that lies, and lives."""
    queue = real.serve()[0]
    queue.describe(5, 1 << 40, SECTOR)
    queue.make_available(5)
    real.driver.kick(0)
    assert "has ended, with one request in flight" in real.broken()
    real.serve()
