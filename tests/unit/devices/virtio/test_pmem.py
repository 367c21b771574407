"""virtio-pmem: its configuration space, and what is answered to each request."""

from __future__ import annotations

import pytest
from support.guest_ram import guest_ram
from support.virtio_cases import InlinePmem
from support.virtqueue import Driver

from vmservice.devices.virtio.pmem import Pmem, PmemState

DONE, FAILED = bytes(4), b"\xff\xff\xff\xff"
FLUSH = bytes(4)


class Rig:
    def __init__(self) -> None:
        self.flushes = 0
        self.is_kept = True
        self.memory = guest_ram()
        self.driver = Driver(InlinePmem(PmemState(5 << 30, 6 << 20), self.flush), self.memory)
        (self.queue,) = self.driver.start()

    def flush(self) -> bool:
        self.flushes += 1
        return self.is_kept

    def answers(self) -> list[bytes]:
        self.driver.kick()
        return [data for _, _, data in self.queue.take_used()]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_where_it_is(rig: Rig) -> None:
    read = rig.driver.transport.read_config
    assert read(0, 8) == (5 << 30).to_bytes(8, "little")
    assert read(8, 8) == (6 << 20).to_bytes(8, "little")
    assert read(4, 8) == b"\1\0\0\0\0\0\x60\0"
    assert read(12, 8) == bytes(8)
    rig.driver.transport.write_config(0, bytes(16))
    assert read(0, 8) == (5 << 30).to_bytes(8, "little")
    assert rig.driver.device.device_type == 27


def test_a_flush_is_done_or_has_failed(rig: Rig) -> None:
    rig.queue.add([FLUSH], [4])
    assert rig.answers() == [DONE]
    rig.is_kept = False
    rig.queue.add([FLUSH], [4])
    assert rig.answers() == [FAILED]
    assert rig.flushes == 2


def test_flushes_that_wait_together_are_one(rig: Rig) -> None:
    for _ in range(10):
        rig.queue.add([FLUSH], [4])
    assert rig.answers() == [DONE] * 10
    assert rig.flushes == 1


def test_an_unknown_request_fails_and_flushes_nothing(rig: Rig) -> None:
    rig.queue.add([b"\1\0\0\0"], [4])
    assert rig.answers() == [FAILED]
    assert rig.flushes == 0
    rig.queue.add([b"\0\0\0\1"], [4])
    rig.queue.add([FLUSH], [4])
    assert rig.answers() == [FAILED, DONE]
    assert rig.flushes == 1


def test_a_request_may_be_framed_in_any_way(rig: Rig) -> None:
    rig.queue.add([b"\0", b"\0\0", b"\0"], [1, 2, 1])
    rig.queue.add([FLUSH + b"more"], [100])
    rig.queue.add([FLUSH], [4], indirect=True)
    assert rig.answers() == [DONE] * 3


@pytest.mark.parametrize(
    ("readable", "writable", "words"),
    [
        ([b"\0\0\0"], [4], "has 3 bytes to read; its type alone has 4"),
        ([], [4], "has 0 bytes to read"),
        ([FLUSH], [3], "has 3 of 4 bytes for its answer"),
        ([FLUSH], [], "has 0 of 4 bytes for its answer"),
    ],
)
def test_a_request_that_cannot_be_answered_costs_the_device(
    rig: Rig, readable: list[bytes], writable: list[int], words: str
) -> None:
    rig.queue.add([FLUSH], [4])
    rig.queue.add(readable, writable)
    assert rig.answers() == []
    assert rig.driver.is_broken
    assert words in rig.driver.warnings[0]
    assert rig.flushes == 0
    (rig.queue,) = rig.driver.start()
    rig.queue.add([FLUSH], [4])
    assert rig.answers() == [DONE]


def test_it_goes_on_from_its_state(rig: Rig) -> None:
    state = PmemState.from_values(rig.driver.device.state.values())
    assert Pmem(state, rig.flush).read_config(0, 16) == rig.driver.device.read_config(0, 16)
