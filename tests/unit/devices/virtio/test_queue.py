"""The split virtqueue seen from both sides: what comes through, what the driver is told, and every lie that is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.guest_ram import GIB, guest_ram
from support.virtqueue import INDIRECT, NEXT, NO_INTERRUPT, WRITE, DriverQueue

from vmservice.devices.virtio.ids import EVENT_IDX, INDIRECT_DESC, VERSION_1
from vmservice.devices.virtio.queue import MAX_INDIRECT_CHAIN, Queue, QueueState, Room, check_rings
from vmservice.errors import GuestError, OutOfGuestMemory
from vmservice.memory.guest_memory import GuestMemory

GPA = 0x10000
ALL = VERSION_1 | INDIRECT_DESC | EVENT_IDX

Make = Callable[..., tuple[DriverQueue, Queue]]


@pytest.fixture
def make(ram: GuestMemory) -> Iterator[Make]:
    made: list[Queue] = []

    def both(size: int = 8, features: int = ALL, memory: GuestMemory = ram, start: int = 0) -> tuple[DriverQueue, Queue]:
        driver = DriverQueue(memory, GPA, size, features)
        driver.jump_to(start)
        state = QueueState(size)
        state.addresses = list(driver.addresses)
        state.next_available = state.next_used = state.published_used = start
        state.ready = True
        made.append(Queue(memory, state, features))
        return driver, made[-1]

    yield both
    for queue in made:
        queue.close()


# What comes through


@pytest.mark.parametrize("indirect", [False, True])
def test_a_chain_comes_with_its_bytes_and_its_room(make: Make, indirect: bool) -> None:
    driver, queue = make()
    head = driver.add([b"abc", b"defgh"], [4, 6], indirect=indirect)
    chain = queue.pop()
    assert chain is not None
    assert chain.head == head
    assert (chain.readable_bytes, chain.writable_bytes) == (8, 10)
    assert chain.read(100) == b"abcdefgh"
    assert chain.read(5) == b"abcde"
    assert chain.read(0) == b""
    assert chain.write(b"0123456") == 7
    queue.add_used(chain.head, 7)
    assert queue.publish()
    assert driver.take_used() == [(head, 7, b"0123456")]
    assert queue.pop() is None


@pytest.mark.parametrize("start", [0, 0xFFFE])
def test_room_is_taken_of_chains_of_every_form(make: Make, start: int) -> None:
    """As `pop` would take them, up to what was asked for, and no further; given back at once or put back."""
    driver, queue = make(start=start)
    heads = [driver.add(writable=[20]), driver.add(writable=[12, 30]), driver.add(writable=[16, 1], indirect=True)]
    last = driver.add(writable=[50])
    room = Room()
    queue.take_room(room, 63, 12)
    assert (room.heads, room.sizes, room.counts, room.size_bytes) == (heads, [20, 42, 17], [1, 2, 2], 79)
    assert [len(view) for view in room.views] == [20, 12, 30, 16, 1]
    assert queue.state.next_available == start + 3 & 0xFFFF
    for view in room.views:
        view[:] = b"x" * len(view)
    queue.add_all_used(room.heads, room.sizes)
    assert queue.publish()
    assert driver.take_used() == [(head, size, b"x" * size) for head, size in zip(heads, (20, 42, 17), strict=True)]
    room.drop(3)
    queue.take_room(room, 1000, 12)
    assert (room.heads, room.sizes, room.counts, room.size_bytes, len(room.views)) == ([last], [50], [1], 50, 1)
    queue.put_back()
    chain = queue.pop()
    assert chain is not None
    assert chain.head == last


@pytest.mark.parametrize("buffers", [([], [11]), ([], [4, 7]), ([b"a"], [20]), ([b"a"], [])])
def test_room_that_is_too_small_or_to_be_read(make: Make, buffers: tuple[list[bytes], list[int]]) -> None:
    driver, queue = make()
    driver.add(writable=[12])
    driver.add(*buffers)
    room = Room()
    with pytest.raises(GuestError, match=r"a buffer to receive in has \d+ bytes to write; expected 12 at least, all to write"):
        queue.take_room(room, 1000, 12)
    assert room.sizes == [12]


@pytest.mark.parametrize(("gpa", "size_bytes", "flags"), [(GIB, 4096, WRITE), (0, 0, WRITE), (0, 64, WRITE | INDIRECT | NEXT)])
def test_room_that_cannot_be(make: Make, gpa: int, size_bytes: int, flags: int) -> None:
    driver, queue = make()
    head = driver.add(writable=[64])
    driver.describe(head, gpa, size_bytes, flags)
    with pytest.raises(GuestError):
        queue.take_room(Room(), 1000, 12)


def test_room_where_the_drivers_index_jumps(make: Make) -> None:
    driver, queue = make(size=8)
    driver.jump_to(9)
    with pytest.raises(GuestError, match="jumps by 9"):
        queue.take_room(Room(), 1000, 12)


def test_what_does_not_fit_is_not_written(make: Make) -> None:
    driver, queue = make()
    driver.add(writable=[2, 3])
    chain = queue.pop()
    assert chain is not None
    assert chain.write(b"0123456") == 5
    queue.add_used(chain.head, 5)
    queue.publish()
    assert driver.take_used() == [(chain.head, 5, b"01234")]


def test_direct_descriptors_may_end_in_an_indirect_one(make: Make) -> None:
    """virtio 1.2 §2.7.5.3.2; the WRITE flag of the one that refers to the table means nothing."""
    driver, queue = make()
    table = driver.table([(driver.place(b"two"), 3, NEXT, 1), (driver.place(bytes(4)), 4, WRITE, 0)])
    driver.describe(0, driver.place(b"one"), 3, NEXT, 5)
    driver.describe(5, table, 32, INDIRECT | WRITE)
    driver.make_available(0)
    chain = queue.pop()
    assert chain is not None
    assert (chain.read(100), chain.writable_bytes) == (b"onetwo", 4)


def test_an_indirect_chain_may_be_longer_than_the_virtqueue(make: Make) -> None:
    driver, queue = make(size=2)
    driver.add([b"x"] * 100, indirect=True)
    chain = queue.pop()
    assert chain is not None
    assert chain.read(1000) == b"x" * 100


def test_indices_wrap(make: Make) -> None:
    driver, queue = make(size=4, start=0xFFFE)
    for number in range(10):
        head = driver.add([bytes([number])])
        assert queue.drain(lambda chain: 0)
        assert driver.take_used() == [(head, 0, b"")]
    assert queue.state.next_used == driver.used_index() == 8


def test_a_virtqueue_of_one_entry(make: Make) -> None:
    driver, queue = make(size=1)
    for _ in range(3):
        driver.add([b"x"])
        assert queue.drain(lambda chain: 0)
        assert len(driver.take_used()) == 1


def test_a_virtqueue_made_from_the_state_of_another_goes_on(make: Make, ram: GuestMemory) -> None:
    driver, queue = make()
    driver.add([b"first"])
    driver.add([b"second"])
    chain = queue.pop()
    assert chain is not None
    queue.add_used(chain.head, 0)
    other = Queue(ram, queue.state, ALL)
    chain = other.pop()
    assert chain is not None
    assert chain.read(10) == b"second"
    other.add_used(chain.head, 0)
    other.publish()
    assert [head for head, _, _ in driver.take_used()] == [0, 1]
    other.close()


def test_a_virtqueue_that_is_not_ready_has_nothing(make: Make) -> None:
    driver, queue = make()
    driver.add([b"x"])
    queue.state.ready = False
    assert queue.pop() is None
    assert not queue.has_available()
    assert not queue.drain(lambda chain: 0)


# Who tells whom


def test_the_driver_is_asked_to_notify_only_when_there_is_nothing_left(make: Make) -> None:
    driver, queue = make()
    driver.add([b"0"])
    assert driver.notification_wanted()
    driver.add([b"1"])
    assert not driver.notification_wanted()  # the first one has told
    queue.drain(lambda chain: 0)
    assert driver.avail_event() == 2
    driver.add([b"2"])
    assert driver.notification_wanted()


def test_a_chain_that_comes_just_before_the_driver_is_asked_is_found(make: Make) -> None:
    """The driver added while avail_event was old, so it will not notify: the device looks once more."""
    driver, queue = make()
    real = queue._avail_event
    seen: list[int] = []

    class Racing:
        """Between the device's last look and its request to be notified."""

        def __setitem__(self, index: int, value: int) -> None:
            if not seen:
                driver.add([b"late"])
            seen.append(value)
            real[index] = value

    queue._avail_event = Racing()  # type: ignore[assignment]
    chain = queue.pop()
    queue._avail_event = real
    assert chain is not None
    assert chain.read(10) == b"late"


def test_one_interrupt_a_batch_with_the_event_index(make: Make) -> None:
    driver, queue = make()
    driver.set_used_event(0)
    for _ in range(3):
        driver.add([b"x"])
    assert queue.drain(lambda chain: 0)
    driver.add([b"x"])
    assert not queue.drain(lambda chain: 0)  # used_event is still 0: the driver has not looked yet
    driver.set_used_event(4)
    driver.add([b"x"])
    assert queue.drain(lambda chain: 0)
    driver.set_used_event(6)
    driver.add([b"x"])
    assert not queue.drain(lambda chain: 0)  # it waits for the second one from here
    driver.take_used()
    driver.add([b"x"])
    assert queue.drain(lambda chain: 0)


def test_the_event_index_wraps(make: Make) -> None:
    driver, queue = make(start=0xFFFF)
    driver.set_used_event(0)
    driver.add([b"x"])
    assert not queue.drain(lambda chain: 0)
    driver.add([b"x"])
    assert queue.drain(lambda chain: 0)


def test_without_the_event_index_a_flag_holds_interrupts_back(make: Make) -> None:
    driver, queue = make(features=VERSION_1)
    driver.add([b"x"])
    assert queue.drain(lambda chain: 0)
    driver.set_flags(NO_INTERRUPT)
    driver.add([b"x"])
    assert not queue.drain(lambda chain: 0)
    assert len(driver.take_used()) == 2
    assert driver.avail_event() == 0  # not ours to write


def test_nothing_used_is_nothing_to_tell(make: Make) -> None:
    _, queue = make()
    assert not queue.publish()
    assert not queue.drain(lambda chain: 0)


def test_the_driver_sees_nothing_before_publish(make: Make) -> None:
    driver, queue = make()
    driver.add([b"x"])
    chain = queue.pop()
    assert chain is not None
    queue.add_used(chain.head, 0)
    assert driver.used_index() == 0
    queue.publish()
    assert driver.used_index() == 1


def test_a_batch_is_bounded_and_says_that_there_is_more(make: Make) -> None:
    """A driver that makes another chain available for each that is taken would else hold the lock for ever."""
    driver, queue = make(size=4)
    for _ in range(3):
        driver.add([b"x"])
    taken = []

    def handle(chain: object) -> int:
        taken.append(chain)
        driver.make_available(0)  # the same again, though it has not got it back
        return 0

    queue.drain(handle)
    assert len(taken) == 4
    assert queue.backlog
    taken.clear()
    queue.backlog = False
    driver.set_available_index(queue.state.next_available)
    queue.drain(handle)
    assert not queue.backlog


def test_what_the_device_cannot_take_now_stays(make: Make) -> None:
    driver, queue = make()
    driver.add([b"first"])
    driver.add([b"second"])
    answers: list[int | None] = [0, None]
    assert queue.drain(lambda chain: answers.pop(0))
    assert [head for head, _, _ in driver.take_used()] == [0]
    seen: list[bytes] = []
    driver.set_used_event(1)
    assert queue.drain(lambda chain: seen.append(chain.read(10)) or 1)  # type: ignore[func-returns-value]
    assert seen == [b"second"]


# Lies


def refused(queue: Queue, text: str) -> None:
    with pytest.raises(GuestError, match=text):
        queue.pop()


@pytest.mark.parametrize("jump", [9, 100, 0x8000, 0xFFFF])
def test_an_index_that_jumps(make: Make, jump: int) -> None:
    driver, queue = make()
    driver.set_available_index(jump)
    refused(queue, f"jumps by {jump}, but the virtqueue has 8")


def test_an_index_that_goes_back(make: Make) -> None:
    driver, queue = make()
    driver.add([b"x"])
    queue.drain(lambda chain: 0)
    driver.set_available_index(0)
    refused(queue, "jumps by 65535")


@pytest.mark.parametrize("head", [8, 255, 0xFFFF])
def test_a_head_outside_the_table(make: Make, head: int) -> None:
    driver, queue = make()
    driver.make_available(head)
    refused(queue, f"descriptor {head} is named, but the table has 8")


def test_a_link_outside_the_table(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, GPA, 1, NEXT, 8)
    driver.make_available(0)
    refused(queue, "descriptor 8 is named")


@pytest.mark.parametrize("loop", [[0], [1, 0], [1, 2, 3, 4, 5, 6, 7, 0], [1, 1]])
def test_a_loop(make: Make, loop: list[int]) -> None:
    driver, queue = make()
    for index, following in enumerate(loop):
        driver.describe(index, GPA, 1, NEXT, following)
    driver.make_available(0)
    refused(queue, "from 0 on is a loop")


def test_a_loop_in_an_indirect_table(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, driver.table([(GPA, 1, NEXT, 1), (GPA, 1, NEXT, 0)]), 32, INDIRECT)
    driver.make_available(0)
    refused(queue, "from 0 on is a loop")


def test_an_indirect_chain_has_a_longest_length(make: Make) -> None:
    driver, queue = make()
    entries = [(GPA, 1, NEXT, number + 1) for number in range(MAX_INDIRECT_CHAIN + 1)]
    driver.describe(0, driver.table(entries), 16 * len(entries), INDIRECT)
    driver.make_available(0)
    refused(queue, "longer than can be")


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (8 << 20, 1),  # the hole behind the RAM
        ((8 << 20) - 1, 2),
        (0, 0xFFFFFFFF),
        (0xFEC00000, 4),  # the IOAPIC's registers
        (0xFEE00000, 4096),
        (0xFFFFFFFFFFFFFFFF, 1),
        (0xFFFFFFFFFFFFFFF0, 0x20),  # past the end of the address space, and round to 0 in 64 bits
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
def test_a_buffer_that_is_not_in_memory(make: Make, gpa: int, size: int, flags: int) -> None:
    driver, queue = make()
    driver.describe(0, gpa, size, flags)
    driver.make_available(0)
    with pytest.raises(OutOfGuestMemory, match=f"{gpa:#x}"):
        queue.pop()


def test_a_buffer_without_bytes(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, GPA, 0)
    driver.make_available(0)
    refused(queue, "descriptor 0 has no bytes")


def test_buffers_that_sum_up_to_more_than_4_gib(make: Make) -> None:
    memory = guest_ram((0, 3 * GIB))
    driver, queue = make(memory=memory)
    driver.describe(0, 0, 2 * GIB, NEXT, 1)
    driver.describe(1, 0, 2 * GIB, 0)
    driver.describe(2, 0, 2 * GIB, NEXT, 3)
    driver.describe(3, 0, 2 * GIB, NEXT, 4)
    driver.describe(4, 0, 1, 0)
    driver.make_available(0)
    driver.make_available(2)
    chain = queue.pop()
    assert chain is not None
    assert chain.readable_bytes == 4 * GIB
    refused(queue, "from descriptor 2 on sum up to more than 4 GiB")
    del chain
    queue.close()
    memory.close()


def test_something_to_read_behind_something_to_write(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, GPA, 1, WRITE | NEXT, 1)
    driver.describe(1, GPA, 1)
    driver.make_available(0)
    refused(queue, "descriptor 1 is for the device to read, but follows one that it may write")


def test_an_indirect_table_in_an_indirect_table(make: Make) -> None:
    driver, queue = make()
    inner = driver.table([(GPA, 1, 0, 0)])
    driver.describe(0, driver.table([(inner, 16, INDIRECT, 0)]), 16, INDIRECT)
    driver.make_available(0)
    refused(queue, "refers to another indirect table")


@pytest.mark.parametrize("size", [0, 1, 15, 17, 31])
def test_an_indirect_table_of_no_whole_descriptors(make: Make, size: int) -> None:
    driver, queue = make()
    driver.describe(0, driver.table([(GPA, 1, 0, 0)]), size, INDIRECT)
    driver.make_available(0)
    refused(queue, f"an indirect table has {size} bytes")


def test_an_indirect_table_outside_memory(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, (8 << 20) - 16, 32, INDIRECT)
    driver.make_available(0)
    refused(queue, "not in guest memory")


def test_an_indirect_descriptor_that_is_chained(make: Make) -> None:
    driver, queue = make()
    driver.describe(0, driver.table([(GPA, 1, 0, 0)]), 16, INDIRECT | NEXT, 1)
    driver.make_available(0)
    refused(queue, "both indirect and chained")


def test_an_indirect_descriptor_that_was_not_agreed_on(make: Make) -> None:
    driver, queue = make(features=VERSION_1)
    driver.add([b"x"], indirect=True)
    refused(queue, "not negotiated")


# Where the rings may be


def ring_state(ram: GuestMemory, size: int = 8, maximum: int = 256) -> QueueState:
    state = QueueState(maximum)
    state.size = size
    state.addresses = list(DriverQueue(ram, GPA, max(1, min(size, 256)), ALL).addresses)
    return state


@pytest.mark.parametrize("size", [1, 2, 128, 256])
def test_sizes_that_can_be(ram: GuestMemory, size: int) -> None:
    check_rings(ring_state(ram, size), ram)


@pytest.mark.parametrize("size", [0, 3, 6, 255, 257, 512, 0xFFFF])
def test_sizes_that_cannot_be(ram: GuestMemory, size: int) -> None:
    with pytest.raises(GuestError, match=f"a virtqueue of {size} entries cannot be; up to 256"):
        check_rings(ring_state(ram, size), ram)


@pytest.mark.parametrize(("ring", "name", "off"), [(0, "descriptor table", 8), (1, "available ring", 1), (2, "used ring", 2)])
def test_rings_are_aligned(ram: GuestMemory, ring: int, name: str, off: int) -> None:
    state = ring_state(ram)
    state.addresses[ring] += off
    with pytest.raises(GuestError, match=f"the {name} at guest address .* is not aligned to {2 * off}"):
        check_rings(state, ram)


@pytest.mark.parametrize(
    ("ring", "name", "length"), [(0, "descriptor table", 128), (1, "available ring", 22), (2, "used ring", 70)]
)
@pytest.mark.parametrize("gpa", [8 << 20, 0xFEC00000, 1 << 63])
def test_rings_are_in_memory(ram: GuestMemory, ring: int, name: str, length: int, gpa: int) -> None:
    state = ring_state(ram)
    state.addresses[ring] = gpa
    with pytest.raises(GuestError, match=f"the {name}, {length} bytes at guest address {gpa:#x}, is not in guest memory"):
        check_rings(state, ram)


def test_rings_are_in_memory_to_their_last_byte(ram: GuestMemory) -> None:
    state = ring_state(ram)
    state.addresses[0] = (8 << 20) - 128
    check_rings(state, ram)
    state.addresses[0] += 16
    with pytest.raises(GuestError):
        check_rings(state, ram)
