"""The front end of vhost-user against a back end of the test's own: what it asks, and what it does not believe."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.vhost_user_double import CONFIG_BYTES, FEATURES, DiskBackEnd

from vmservice.errors import HostError
from vmservice.host import vhost_user
from vmservice.host.vhost_user import VhostUser
from vmservice.memory import backing
from vmservice.memory.guest_memory import GuestMemory

MIB = 1 << 20
QUICK_SEC = 0.2
TIMEOUT_SEC = 60.0
RINGS = (0x1000, 0x2000, 0x3000)


class Pair:
    """Both ends of one connection."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.disk = DiskBackEnd(connection=theirs)
        self.front = VhostUser(ours, "the back end of disk0", TIMEOUT_SEC)

    def close(self) -> None:
        self.front.close()
        self.disk.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = backing.allocate([(0, MIB), (4 << 30, MIB)], shared=True)
    yield memory
    memory.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def message(request: int, payload: bytes, flags: int = 5) -> bytes:
    return struct.pack("<III", request, flags, len(payload)) + payload


def start(pair: Pair, memory: GuestMemory, eventfd: int) -> None:
    memory.write(RINGS[1], struct.pack("<HH", 0, 7))
    pair.front.open()
    pair.front.set_features(1 << 32)
    pair.front.set_memory(memory.regions)
    pair.front.start_ring(1, 8, 7, RINGS, kick=eventfd, call=eventfd)


def test_a_connection_begins_with_what_both_know(pair: Pair) -> None:
    pair.front.open()
    assert pair.front.features == FEATURES & ~(1 << 30)
    assert pair.front.queues == 2
    assert pair.front.memory_slots == 32
    assert pair.disk.received == [1, 15, 16, 3, 17, 36, 21]
    assert pair.front.channel >= 0


def test_what_is_not_known_here_is_not_asked_for(pair: Pair) -> None:
    pair.disk.protocol = (1 << 64) - 1
    pair.front.open()
    assert struct.unpack("<Q", pair.disk.payloads[16]) == (1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15,)


def test_a_back_end_that_knows_little_is_asked_little(pair: Pair) -> None:
    pair.disk.protocol = 0
    pair.front.open()
    assert pair.front.queues == 1
    assert pair.front.channel == -1
    pair.front.reset()
    pair.front.set_features(1 << 32)  # without an answer
    deadline = time.monotonic() + TIMEOUT_SEC
    while len(pair.disk.received) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert pair.disk.received == [1, 15, 16, 3, 2]


def test_a_back_end_without_protocol_features_is_refused(pair: Pair) -> None:
    pair.disk.features &= ~(1 << 30)
    with pytest.raises(HostError, match="the back end of disk0 has no VHOST_USER_F_PROTOCOL_FEATURES"):
        pair.front.open()


def test_a_virtqueue_is_handed_over_and_taken_back(pair: Pair, memory: GuestMemory, eventfd: int) -> None:
    start(pair, memory, eventfd)
    assert pair.disk.received[7:] == [2, 5, 8, 10, 9, 13, 14, 12, 18]
    assert struct.unpack("<Q", pair.disk.payloads[2]) == (1 << 32 | 1 << 30,)
    table = struct.unpack("<IIQQQQQQQQ", pair.disk.payloads[5])
    assert table == (2, 0, 0, MIB, 0, 0, 4 << 30, MIB, 4 << 30, MIB)
    assert pair.front.stop_ring(1) == 7


def test_memory_comes_and_goes_while_virtqueues_are_served(pair: Pair, memory: GuestMemory, eventfd: int) -> None:
    start(pair, memory, eventfd)
    more = backing.allocate([(8 << 30, MIB)], shared=True)
    try:
        assert pair.front.can_add_regions
        pair.front.add_region(more.regions[0])
        pair.front.remove_region(more.regions[0])
    finally:
        more.close()
    assert pair.disk.received[-2:] == [37, 38]


def test_more_regions_than_a_table_has_follow_one_by_one(pair: Pair) -> None:
    pair.front.open()
    memory = backing.allocate([(number * 2 * MIB, 4096) for number in range(10)], shared=True)
    try:
        pair.front.set_memory(memory.regions)
        assert pair.disk.received[7:] == [5, 37, 37]
        pair.front.memory_slots = 9
        with pytest.raises(HostError, match="takes 9 regions of guest memory, and there are 10"):
            pair.front.set_memory(memory.regions)
    finally:
        memory.close()


def test_private_memory_cannot_be_shown(pair: Pair) -> None:
    pair.front.open()
    memory = backing.allocate([(0, MIB)])
    try:
        with pytest.raises(HostError, match="at 0x0 is private"):
            pair.front.set_memory(memory.regions)
    finally:
        memory.close()


def test_the_configuration_space_is_read(pair: Pair) -> None:
    pair.front.open()
    assert pair.front.read_config(CONFIG_BYTES)[:8] == struct.pack("<Q", 64)
    with pytest.raises(HostError, match="does not show the first 100 bytes"):
        pair.front.read_config(100)


def test_a_change_of_the_configuration_is_heard_of(pair: Pair) -> None:
    pair.front.open()
    assert not pair.front.take_config_changed()
    pair.disk.say(struct.pack("<I", 2))
    assert not pair.front.take_config_changed()
    pair.disk.say(struct.pack("<II", 1, 0) + message(99, b"more", 1))
    assert pair.front.take_config_changed()
    assert not pair.front.take_config_changed()


def test_the_back_end_has_an_answer_where_it_wants_one(pair: Pair) -> None:
    pair.front.open()
    pair.disk.say(message(2, b"", 1 | 8) + message(77, b"", 1 | 8))
    assert pair.front.take_config_changed()
    visit = pair.disk._visit
    assert visit is not None and visit.channel is not None
    expected = message(2, bytes(8)) + message(77, struct.pack("<Q", 1))
    assert visit.channel.recv(100) == expected


def test_a_channel_that_ends_is_no_fault(pair: Pair) -> None:
    pair.front.open()
    visit = pair.disk._visit
    assert visit is not None and visit.channel is not None
    visit.channel.shutdown(socket.SHUT_RDWR)
    assert not pair.front.take_config_changed()
    assert pair.front.channel == -1
    assert pair.front.read_config(CONFIG_BYTES)


@pytest.mark.parametrize("said", [struct.pack("<III", 2, 1, 1 << 30), struct.pack("<III", 2, 3, 0)])
def test_nonsense_on_the_channel_ends_the_connection(pair: Pair, said: bytes) -> None:
    pair.front.open()
    pair.disk.say(said)
    with pytest.raises(HostError, match="on its own channel"):
        pair.front.take_config_changed()
    assert pair.front.is_lost


def test_a_refusal_leaves_the_connection(pair: Pair) -> None:
    pair.front.open()
    pair.disk.answers[2] = message(2, struct.pack("<Q", 1))
    with pytest.raises(HostError, match="refuses message 2 of vhost-user"):
        pair.front.set_features(0)
    assert not pair.front.is_lost
    assert pair.front.read_config(CONFIG_BYTES)


# What a back end must not be believed


WRONG_ANSWERS = {
    "another request": (1, message(2, bytes(8))),
    "no reply": (1, message(1, bytes(8), 1)),
    "another version": (1, message(1, bytes(8), 6)),
    "too little": (1, message(1, bytes(7))),
    "very much": (1, struct.pack("<III", 1, 5, 1 << 31)),
    "no virtqueues": (17, message(17, bytes(8))),
    "too many virtqueues": (17, message(17, struct.pack("<Q", 1000))),
    "a long configuration": (24, struct.pack("<III", 24, 5, 1 << 31)),
    "another configuration": (24, message(24, struct.pack("<III", 4, CONFIG_BYTES, 0) + bytes(CONFIG_BYTES))),
}


@pytest.mark.parametrize(("request_number", "answer"), WRONG_ANSWERS.values(), ids=WRONG_ANSWERS.keys())
def test_a_wrong_answer_ends_the_connection(pair: Pair, request_number: int, answer: bytes) -> None:
    pair.disk.answers[request_number] = answer
    with pytest.raises(HostError, match="the back end of disk0"):
        open_and_read(pair.front)
    assert pair.front.is_lost
    with pytest.raises(HostError, match="is gone"):
        pair.front.set_features(0)


@pytest.mark.parametrize("state", [struct.pack("<II", 0, 7), struct.pack("<II", 1, 1 << 16)])
def test_a_virtqueue_that_is_stopped_elsewhere_ends_the_connection(
    pair: Pair, memory: GuestMemory, eventfd: int, state: bytes
) -> None:
    start(pair, memory, eventfd)
    pair.disk.answers[11] = message(11, state)
    with pytest.raises(HostError, match="stops virtqueue 1, but answers"):
        pair.front.stop_ring(1)


def open_and_read(front: VhostUser) -> None:
    front.open()
    front.read_config(CONFIG_BYTES)


STEPS = (1, 15, 16, 3, 17, 36, 21, 24)


@pytest.mark.parametrize("step", STEPS)
def test_a_back_end_that_dies_at_a_step_is_gone(pair: Pair, step: int) -> None:
    pair.disk.dies_at = {step}
    with pytest.raises(HostError, match=r"the back end of disk0 (has closed the connection|is gone)"):
        open_and_read(pair.front)
    assert pair.front.is_lost


@pytest.mark.parametrize("step", (1, 3, 24))
def test_a_back_end_that_is_silent_is_waited_for_so_long(pair: Pair, step: int) -> None:
    pair.disk.silent_at = {step}
    pair.front.reply_sec = QUICK_SEC
    began = time.monotonic()
    with pytest.raises(HostError, match="does not answer in time"):
        open_and_read(pair.front)
    assert time.monotonic() - began >= QUICK_SEC * 0.9
    assert pair.front.is_lost


def test_a_back_end_that_reads_nothing_is_waited_for_so_long(memory: GuestMemory) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    front = VhostUser(ours, "the back end of disk0", QUICK_SEC)
    try:
        with pytest.raises(HostError, match="does not answer in time"):
            for _ in range(100000):
                front.set_memory(memory.regions)
    finally:
        front.close()
        theirs.close()


def test_an_answer_in_pieces_is_one(pair: Pair) -> None:
    """The back end's answer comes byte by byte."""
    ours, theirs = socket.socketpair()
    front = VhostUser(ours, "the back end of disk0", TIMEOUT_SEC)
    try:
        for byte in message(1, struct.pack("<Q", 1 << 30)) + message(15, bytes(8)):
            theirs.send(bytes([byte]))
        front.open()
        assert front.features == 0
    finally:
        front.close()
        theirs.close()


def test_whatever_a_back_end_says_is_an_error_of_the_host(memory: GuestMemory, eventfd: int) -> None:
    """Answers to the right requests with anything in them, up to some point, and noise behind."""
    for seed in range(300):
        rng = random.Random(seed)
        ours, theirs = socket.socketpair()
        front = VhostUser(ours, "the back end of disk0", TIMEOUT_SEC)
        said = b""
        for request in STEPS[: rng.randrange(len(STEPS) + 1)]:
            body = rng.choice([rng.randbytes(8), struct.pack("<Q", 1 << 30 | rng.getrandbits(16)), bytes(8)])
            said += message(request, body if rng.random() < 0.9 else rng.randbytes(rng.randrange(80)))
        theirs.send(said + rng.randbytes(rng.randrange(1, 100)))
        theirs.shutdown(socket.SHUT_WR)
        try:
            with pytest.raises(HostError, match="the back end of disk0"):
                everything(front, memory, eventfd)
        finally:
            front.close()
            theirs.close()


def everything(front: VhostUser, memory: GuestMemory, eventfd: int) -> None:
    open_and_read(front)
    front.set_memory(memory.regions)
    front.start_ring(0, 8, 0, RINGS, kick=eventfd, call=eventfd)
    front.stop_ring(0)
    front.read_config(CONFIG_BYTES)


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    expected: list[tuple[Callable[[], None], type[OSError]]] = [
        (lambda: None, FileNotFoundError),
        (lambda: bound_only(tmp_path), ConnectionRefusedError),
    ]
    for prepare, error in expected:
        prepare()
        with pytest.raises(error):
            vhost_user.connect(str(tmp_path / "socket"), TIMEOUT_SEC)


def bound_only(folder: Path) -> None:
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(folder / "socket"))
    bound.close()
