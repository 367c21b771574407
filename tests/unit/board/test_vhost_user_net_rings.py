"""The virtqueues of a network that another process serves: whatever becomes of that, the driver keeps its device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.net_double import HEADER, RECEIVE, TRANSMIT, NetBackEnd
from support.virtqueue import Driver, DriverQueue

from vmservice.board.vhost_user_net_rings import VhostUserNetRings
from vmservice.devices.virtio.external import External, ExternalState
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.memory import backing

MIB = 1 << 20
TIMEOUT_SEC = 30.0
QUEUE_SIZE = 128
MRG_RXBUF, MAC = 1 << 15, 1 << 5
FRAME = bytes(range(64))


class Bench:
    """A driver with its network, whose back end is behind `path`. `links` is what the driver would see of its link."""

    def __init__(self, path: Path, first_pause_sec: float = 0.05) -> None:
        self.memory = backing.allocate([(0, 2 * MIB), (4 << 30, MIB)], shared=True)
        self.link = BackEndLink(str(path), "the passt of net0", 0, "start it", known_queues=2)
        self.warnings: list[str] = []
        self.bugs: list[Exception] = []
        self.links: list[bool] = []
        self.link.open(TIMEOUT_SEC)
        device = External(1, ExternalState(self.link.features & MRG_RXBUF | MAC, [QUEUE_SIZE] * 2, bytes(12)))
        self.rings = VhostUserNetRings(
            "net0",
            2,
            self.link,
            self.memory,
            on_link=self.links.append,
            warn=self.warnings.append,
            bug=self.bugs.append,
            first_pause_sec=first_pause_sec,
        )
        self.driver = Driver(device, self.memory, rings=self.rings)
        self.rings.begin()

    def start(self) -> list[DriverQueue]:
        with self.driver.transport.lock:
            queues = self.driver.start()
        for _ in range(8):
            queues[RECEIVE].add([], [256])
        self.driver.kick(RECEIVE)
        return queues

    def transmit(self, frame: bytes) -> None:
        self.driver.queues[TRANSMIT].add([HEADER, frame])
        self.driver.kick(TRANSMIT)

    def received(self) -> list[bytes]:
        return [data for _, _, data in self.driver.queues[RECEIVE].take_used()]

    def close(self) -> None:
        self.driver.transport.close()
        self.rings.close()
        self.link.close()
        self.memory.close()
        assert self.bugs == []


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def passt(tmp_path: Path) -> Iterator[NetBackEnd]:
    passt = NetBackEnd(tmp_path / "socket")
    yield passt
    passt.close()


@pytest.fixture
def bench(passt: NetBackEnd, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "socket")
    yield bench
    bench.close()


def check_traffic(bench: Bench, passt: NetBackEnd, number: int = 0) -> None:
    """Both ways, with frames of their own."""
    there, back = bytes([number]) + FRAME, FRAME + bytes([number])
    bench.transmit(there)
    until(lambda: there in passt.frames)
    passt.send(back)
    until(lambda: bench.received() == [HEADER + back])


def test_frames_go_both_ways(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    for number in range(20):
        check_traffic(bench, passt, number)
        bench.driver.queues[RECEIVE].add([], [256])
        bench.driver.kick(RECEIVE)
    assert (bench.warnings, bench.links) == ([], [])


def test_the_back_end_hears_of_its_own_features_only(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    until(lambda: passt.taken_up)
    assert passt.payloads[2] == (1 << 32 | 1 << 30 | MRG_RXBUF).to_bytes(8, "little")
    assert not {17, 24, 36} & set(passt.received), "it has no such messages, and ends itself at one"


def test_a_pause_does_not_wait_for_buffers_that_no_frame_has_come_for(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    check_traffic(bench, passt)
    assert bench.driver.transport.stop()
    state = bench.driver.transport.state.queues[RECEIVE]
    assert (state.next_available, state.next_used) == (1, 1)
    passt.send(b"meanwhile" * 8)
    bench.driver.transport.start()
    until(lambda: bench.received() == [HEADER + b"meanwhile" * 8])
    assert passt.connections == 1


def test_one_that_ends_is_found_again_and_the_driver_sees_its_link_go_down_and_up(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    check_traffic(bench, passt)
    passt.cut()
    until(lambda: bench.links == [False, True])
    check_traffic(bench, passt, 1)
    until(lambda: len(bench.warnings) == 2)
    said = "the passt of net0 has ended; the guest's link is down until it is there again"
    assert bench.warnings == [said, "the passt of net0 is there again"]
    assert not bench.driver.is_broken


@pytest.mark.parametrize("step", [2, 5, 8, 10, 9, 13, 14, 12, 18])
def test_one_that_ends_while_it_is_handed_the_virtqueues(bench: Bench, passt: NetBackEnd, step: int) -> None:
    passt.dies_at = {step}
    bench.start()
    until(lambda: passt.connections >= 3)
    assert bench.links[0] is False
    passt.dies_at = set()
    until(lambda: passt.taken_up)
    check_traffic(bench, passt)
    until(lambda: bench.links[-1])
    assert not bench.driver.is_broken


def test_one_that_ends_again_and_again_is_asked_for_more_and_more_slowly(bench: Bench, passt: NetBackEnd) -> None:
    """Also by a driver that resets the device each time."""
    passt.dies_at = {5}
    began = time.monotonic()
    bench.start()
    until(lambda: passt.connections >= 8)  # two at each attempt: the first may have been there and have ended before
    assert time.monotonic() - began > 0.14  # pauses of 0, 0.05 and 0.1
    bench.start()
    until(lambda: passt.connections >= 10)
    assert time.monotonic() - began > 0.34
    assert len(bench.warnings) == 1


def test_one_that_ends_while_the_machine_is_paused(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    check_traffic(bench, passt)
    assert bench.driver.transport.stop()
    passt.cut()
    until(lambda: bench.link.front is None)
    bench.driver.transport.start()
    check_traffic(bench, passt, 1)


def test_one_that_ends_when_it_is_told_to_stop(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    check_traffic(bench, passt)
    passt.dies_at = {11}
    assert bench.driver.transport.stop()
    passt.dies_at = set()
    state = bench.driver.transport.state.queues[RECEIVE]
    assert (state.next_available, state.next_used) == (1, 1)
    bench.driver.transport.start()
    check_traffic(bench, passt, 1)
    assert not bench.driver.is_broken


def test_a_machine_is_paused_and_ends_while_nobody_serves(bench: Bench, passt: NetBackEnd, tmp_path: Path) -> None:
    bench.start()
    check_traffic(bench, passt)
    (tmp_path / "socket").rename(tmp_path / "away")
    passt.cut()
    until(lambda: bench.links == [False])
    assert bench.driver.transport.stop()
    (tmp_path / "away").rename(tmp_path / "socket")
    bench.driver.transport.start()
    check_traffic(bench, passt, 1)
    (tmp_path / "socket").unlink()
    passt.cut()
    until(lambda: bench.links == [False, True, False])
    assert bench.driver.transport.stop()


def test_virtqueues_that_are_held_are_served_by_nobody(bench: Bench, passt: NetBackEnd) -> None:
    bench.start()
    check_traffic(bench, passt)
    until(lambda: passt.taken_up)  # frames may go before the last virtqueue is enabled
    bench.rings.hold(True)
    until(lambda: passt.is_idle)
    bench.transmit(b"later" * 12)
    passt.send(FRAME)
    assert bench.driver.transport.stop()
    bench.driver.transport.start()
    assert (passt.taken_up, bench.received(), len(passt.frames)) == (False, [], 1)
    bench.rings.hold(False)
    until(lambda: bench.received() == [HEADER + FRAME])
    until(lambda: b"later" * 12 in passt.frames)
    assert passt.connections == 1


def test_one_that_can_be_started_again_is_looked_for_when_it_is_said_so(passt: NetBackEnd, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "socket", first_pause_sec=6 * TIMEOUT_SEC)
    try:
        passt.dies_at = {5}
        bench.start()
        until(lambda: passt.ended == 4)  # after two attempts, the first pause
        passt.dies_at = set()

        def is_found() -> bool:
            bench.rings.look_again()
            return passt.taken_up

        until(is_found)
    finally:
        bench.close()
