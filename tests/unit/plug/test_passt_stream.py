"""A network at a passt without vhost-user: frames both ways, and whatever becomes of passt, the driver keeps its device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.networks import NetSlot
from support.stream_double import StreamPasst
from support.virtqueue import DriverQueue

from vmservice.config.sections.network import NetworkDevice
from vmservice.errors import HostError
from vmservice.host import passt as host_passt
from vmservice.plug import passt
from vmservice.plug.external import socket_path
from vmservice.plug.passt_stream import StreamBackend, StreamPlug, arp_probe

MAC = bytes.fromhex("02005e005301")
TIMEOUT_SEC = 60.0
HEADER = bytes(12)
FRAME = MAC * 2 + b"\x08\0" + bytes(range(64))
RECEIVE, TRANSMIT = 0, 1
# GUEST_TSO and its like, CSUM, MQ: what only a tap could have
NEVER = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 22


class Bench:
    """The network `lan` of the VM `demo`, plugged in."""

    def __init__(self, link: str = "up") -> None:
        self.section = NetworkDevice("lan", MAC, mtu=65520, link=link, plug="vmservice.plug.passt")
        backend = passt.open(self.section, SimpleNamespace(vm_name="demo"))  # type: ignore[arg-type]
        assert isinstance(backend, StreamBackend)
        self.backend = backend
        self.plug_in()

    def plug_in(self) -> None:
        self.slot = NetSlot()
        plug = passt.build(self.section, self.backend, self.slot)  # type: ignore[arg-type]
        assert isinstance(plug, StreamPlug)
        assert self.slot.driver is not None
        self.plug, self.driver = plug, self.slot.driver
        self.plug.start()
        self.queues: list[DriverQueue] = []

    def start(self) -> None:
        with self.slot.lock:
            self.queues = self.driver.start()
        for _ in range(32):
            self.queues[RECEIVE].add([], [1600])
        self.kick(RECEIVE)

    def kick(self, index: int) -> None:
        with self.slot.lock:
            self.driver.kick(index)

    def transmit(self, frame: bytes) -> None:
        self.queues[TRANSMIT].add([HEADER, frame])
        self.kick(TRANSMIT)

    def received(self) -> list[bytes]:
        """All but what passt said when it was asked for."""
        data = [one[12:] for _, _, one in self.queues[RECEIVE].take_used()]
        return [frame for frame in data if frame[12:14] != b"\x08\x06"]

    def link(self) -> bool:
        with self.slot.lock:
            return bool(self.driver.transport.read_config(6, 1)[0] & 1)

    def until(self, holds: Callable[[], object], within_sec: float = float("inf")) -> None:
        """What is posted is run, and time passes: as much as `within_sec` of the timers', however long the test waits."""
        deadline, end = time.monotonic() + TIMEOUT_SEC, self.slot.timers.now() + within_sec
        while not holds():
            assert time.monotonic() < deadline
            self.slot.run_posted()
            if self.slot.timers.now() < end:
                with self.slot.lock:
                    self.slot.timers.advance(0.1)
            time.sleep(0.001)

    def traffic(self, passt: StreamPasst) -> None:
        number = len(passt.frames).to_bytes(2, "big")
        self.transmit(FRAME + number)
        self.until(lambda: FRAME + number in passt.frames)
        passt.send(FRAME[::-1] + number)
        self.until(lambda: self.received() == [FRAME[::-1] + number])

    def close(self) -> None:
        self.plug.close()
        self.slot.memory.close()
        self.backend.close()


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StreamPasst]:
    program = tmp_path / "passt"
    program.write_bytes(b"an old one")
    monkeypatch.setattr(host_passt, "PASST", str(program))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "vmservice" / "demo"))
    path = Path(socket_path("passt", "demo", "lan"))
    path.parent.mkdir(parents=True)
    old = StreamPasst(path)
    yield old
    old.close()


@pytest.fixture
def bench(old: StreamPasst) -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_what_the_driver_is_offered(bench: Bench) -> None:
    config = MAC + b"\1\0" + b"\1\0" + (65520).to_bytes(2, "little")
    assert bench.driver.transport.read_config(0, 12) == config
    assert not bench.driver.transport.offered_features & NEVER
    (values,) = passt.details(bench.section, bench.backend).values()
    assert (values["vhost_user"], values["socket"]) == (False, socket_path("passt", "demo", "lan"))
    assert list(bench.backend.fds()) == ["stream"]


def test_frames_go_both_ways_and_are_counted(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    for _ in range(20):
        bench.traffic(old)
    counted = bench.plug.stats()
    assert counted["sent"] == 20
    assert counted["received"] == 21  # and what it said when it was asked for
    assert counted["sent_dropped"] == counted["received_dropped"] == 0


def test_a_pause_loses_nothing(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    bench.traffic(old)
    bench.plug.pause()
    for number in range(10):
        old.send(FRAME + bytes([number]))
    bench.transmit(FRAME)
    bench.plug.resume()
    seen: list[bytes] = []

    def all_came() -> bool:
        seen.extend(bench.received())
        return len(seen) == 10 and FRAME in old.frames

    bench.until(all_came)
    assert seen == [FRAME + bytes([number]) for number in range(10)]
    assert old.connections == 1


def test_the_next_machine_has_the_same_connection(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    bench.traffic(old)
    bench.plug.close()
    bench.slot.memory.close()
    bench.plug_in()
    bench.start()
    bench.traffic(old)
    assert old.connections == 1


def test_passt_ends_and_is_there_again(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    bench.traffic(old)
    old.hangs_up = True
    old.cut()
    bench.until(lambda: not bench.link())
    bench.until(lambda: old.connections >= 4)
    assert not bench.link(), "one that hangs up at once is none"
    old.hangs_up = False
    bench.until(bench.link)
    bench.traffic(old)
    said = "the passt of the network lan has ended; the guest's link is down until it is there again"
    assert bench.slot.warnings == [said, "the passt of the network lan is there again"]
    assert not bench.driver.is_broken


def test_one_that_ends_again_and_again_is_asked_for_more_and_more_slowly(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    old.hangs_up = True
    old.cut()
    began = bench.slot.timers.now()
    bench.until(lambda: old.connections == 6)
    assert bench.slot.timers.now() - began >= 1 + 2 + 4
    old.hangs_up = False
    bench.plug.reconfigure(bench.section)  # a reload: it is not waited for
    bench.until(bench.link, within_sec=3)  # the next pause would be 8


def test_passt_ends_while_the_machine_is_paused(bench: Bench, old: StreamPasst) -> None:
    bench.start()
    bench.traffic(old)
    bench.plug.pause()
    old.cut()
    bench.plug.resume()
    bench.until(lambda: old.connections == 2 and bench.link())
    bench.traffic(old)


def test_passt_ends_while_there_is_no_driver(bench: Bench, old: StreamPasst) -> None:
    """The next machine is the one that finds out."""
    old.cut()
    bench.until(bench.backend.stream.is_at_end)
    bench.plug.close()
    bench.slot.memory.close()
    bench.plug_in()
    assert not bench.link()
    bench.until(bench.link)
    bench.start()
    bench.traffic(old)
    assert old.connections == 2


def test_a_link_that_is_down(old: StreamPasst) -> None:
    bench = Bench(link="down")
    bench.start()
    assert not bench.link()
    bench.transmit(FRAME)
    bench.until(lambda: bench.plug.stats()["sent_dropped"] == 1)
    bench.plug.reconfigure(NetworkDevice("lan", MAC, mtu=65520))
    assert bench.link()
    bench.traffic(old)
    assert FRAME not in old.frames
    bench.close()


def test_a_passt_that_hangs_up_is_no_start(old: StreamPasst) -> None:
    old.hangs_up = True
    said = r"the passt of the network lan has closed the connection; the journal of vm-passt@demo:lan\.service may say why"
    with pytest.raises(HostError, match=said):
        Bench()


def test_nobody_listens(old: StreamPasst) -> None:
    Path(socket_path("passt", "demo", "lan")).unlink()
    with pytest.raises(HostError, match=r"the passt of the network lan cannot be reached at .*: No such file or directory"):
        Bench()


def test_the_question_that_shows_that_passt_lives() -> None:
    frame = arp_probe(MAC)
    assert len(frame) == 42
    assert frame[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert frame[20:22] == b"\0\1"
    assert (frame[28:32], frame[38:42]) == (bytes(4), bytes([169, 254, 1, 1]))
