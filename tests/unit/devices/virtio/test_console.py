"""virtio-console: bytes both ways, the size of the terminal, and ports that the driver learns of by control messages."""

from __future__ import annotations

import struct

import pytest
from support.virtqueue import WRITE, Driver, DriverQueue

from vmservice.devices.virtio.console import (
    F_MULTIPORT,
    F_SIZE,
    MAX_CONTROL_PENDING,
    MAX_PORTS,
    MAX_WRITE_BYTES,
    Console,
    Port,
    port_of_queue,
    receive_queue,
    transmit_queue,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

    from vmservice.memory.guest_memory import GuestMemory

READY, ADD, PORT_READY, IS_CONSOLE, RESIZE, OPEN, NAME = 0, 1, 3, 4, 5, 6, 7
CONTROL_IN, CONTROL_OUT = 2, 3


class Host:
    """The host's end of some ports: what each printed, and how often it was told of room."""

    def __init__(self, *ports: tuple[str, bool]) -> None:
        self.written: list[bytearray] = [bytearray() for _ in ports]
        self.chunks: list[int] = []
        self.rooms = [0] * len(ports)
        self.console = Console([self._port(number, name, is_console) for number, (name, is_console) in enumerate(ports)])

    def _port(self, number: int, name: str, is_console: bool) -> Port:
        def sink(data: bytes) -> None:
            self.written[number] += data
            self.chunks.append(len(data))

        def on_room() -> None:
            self.rooms[number] += 1

        return Port(sink, name=name, is_console=is_console, on_room=on_room)


@pytest.fixture
def single() -> Host:
    return Host(("", True))


@pytest.fixture
def multi() -> Host:
    return Host(("tty", True), ("agent", False), ("", True))


def say(driver: Driver, port: int, event: int, value: int, *extra: bytes) -> None:
    driver.queues[CONTROL_OUT].add([struct.pack("<IHH", port, event, value), *extra])
    driver.kick(CONTROL_OUT)
    driver.queues[CONTROL_OUT].take_used()


def hear(driver: Driver) -> list[tuple[int, int, int, bytes]]:
    """The control messages since the last call; each buffer goes back to the device."""
    queue = driver.queues[CONTROL_IN]
    messages = [(*struct.unpack("<IHH", data[:8]), data[8:]) for _, _, data in queue.take_used()]
    for _ in messages:
        queue.add(writable=[64])
    return messages


def connect(driver: Driver) -> None:
    """As Linux' driver does, up to all ports being open in the guest."""
    driver.start()
    for _ in range(32):
        driver.queues[CONTROL_IN].add(writable=[64])
    driver.kick(CONTROL_IN)
    say(driver, 0xFFFFFFFF, READY, 1)
    for port, event, _, _ in hear(driver):
        assert event == ADD
        say(driver, port, PORT_READY, 1)
        say(driver, port, OPEN, 1)
    hear(driver)
    driver.interrupt.take()


# One port


def test_what_a_single_port_is(single: Host) -> None:
    console = single.console
    assert (console.device_type, console.features, console.queue_max_sizes) == (3, F_SIZE, (64, 64))


def test_the_guest_prints(single: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(single.console)
    (_, transmit) = driver.start()
    transmit.add([b"hello, ", b"world"])
    transmit.add([b"!"], indirect=True)
    driver.kick(1)
    assert single.written == [b"hello, world!"]
    assert [(head, written) for head, written, _ in transmit.take_used()] == [(0, 0), (2, 0)]
    assert driver.interrupt.take() == [1]


def test_what_one_chain_says_is_bounded(single: Host, make_driver: MakeDriver) -> None:
    """4 MiB at once cost the host no more than the limit, and the guest goes on."""
    driver = make_driver(single.console)
    (_, transmit) = driver.start()
    transmit.describe(0, 0x100000, 4 << 20)
    transmit.make_available(0)
    driver.kick(1)
    assert single.chunks == [MAX_WRITE_BYTES]
    assert not driver.is_broken


def test_the_host_types(single: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(single.console)
    (receive, _) = driver.start()
    receive.add(writable=[4])
    receive.add(writable=[4])
    assert single.console.receive(0, b"abcdef") == 6
    assert [(written, data) for _, written, data in receive.take_used()] == [(4, b"abcd"), (2, b"ef")]
    assert driver.interrupt.take() == [0]


def test_what_finds_no_room_waits_at_the_host(single: Host, make_driver: MakeDriver) -> None:
    console = single.console
    assert console.receive(0, b"early") == 0
    driver = make_driver(console)
    (receive, _) = driver.start()
    single.rooms[0] = 0
    assert console.receive(0, b"x") == 0
    receive.add(writable=[2])
    assert receive.notification_wanted()
    driver.kick(0)
    assert single.rooms == [1]
    assert console.receive(0, b"xyz") == 2
    assert console.receive(0, b"z") == 0
    assert console.receive(0, b"") == 0
    receive.add(writable=[2])
    assert receive.notification_wanted(), "the host waits for room, so the guest must say when there is some"


def test_input_typed_before_the_driver_comes_is_asked_for_when_it_does(single: Host, make_driver: MakeDriver) -> None:
    make_driver(single.console).start()
    assert single.rooms == [1]


def test_the_size_is_in_the_configuration(single: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(single.console)
    assert driver.transport.read_config(0, 12) == struct.pack("<HHII", 0, 0, 1, 0)
    single.console.resize(80, 25)
    assert driver.interrupt.configs == 0
    driver.start()
    single.console.resize(132, 43)
    assert driver.transport.read_config(0, 12) == struct.pack("<HHII", 132, 43, 1, 0)
    assert driver.interrupt.configs == 1
    single.console.resize(132, 43)
    assert driver.interrupt.configs == 1
    driver.transport.write_status(0)
    assert driver.transport.read_config(0, 4) == struct.pack("<HH", 132, 43)


@pytest.mark.parametrize("size", [(-1, 25), (65536, 25), (80, 65536)])
def test_a_size_has_16_bits(single: Host, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="each is at most 65535"):
        single.console.resize(*size)


# Several ports


def test_what_several_ports_are(multi: Host, make_driver: MakeDriver) -> None:
    console = multi.console
    assert console.features == F_SIZE | F_MULTIPORT
    assert len(console.queue_max_sizes) == 8
    assert make_driver(console).transport.read_config(4, 4) == b"\x03\0\0\0"
    assert [receive_queue(port) for port in range(4)] == [0, 4, 6, 8]
    assert [port_of_queue(index) for index in (0, 1, 4, 5, 6, 7, 8)] == [0, 0, 1, 1, 2, 2, 3]


def test_the_driver_learns_of_each_port(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    multi.console.resize(80, 25)
    driver.start()
    for _ in range(32):
        driver.queues[CONTROL_IN].add(writable=[64])
    say(driver, 0xFFFFFFFF, READY, 1)
    assert hear(driver) == [(0, ADD, 0, b""), (1, ADD, 0, b""), (2, ADD, 0, b"")]
    assert driver.interrupt.take() == [CONTROL_OUT, CONTROL_IN]
    say(driver, 0, PORT_READY, 1)
    assert hear(driver) == [
        (0, IS_CONSOLE, 1, b""),
        (0, RESIZE, 0, struct.pack("<HH", 80, 25)),  # columns, then rows
        (0, NAME, 1, b"tty"),
        (0, OPEN, 1, b""),
    ]
    say(driver, 1, PORT_READY, 1)
    assert hear(driver) == [(1, NAME, 1, b"agent"), (1, OPEN, 1, b"")]
    say(driver, 2, PORT_READY, 1)
    assert hear(driver) == [(2, IS_CONSOLE, 1, b""), (2, OPEN, 1, b"")]


def test_messages_wait_for_buffers(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    driver.start()
    queue = driver.queues[CONTROL_IN]
    queue.add(writable=[64])
    say(driver, 0xFFFFFFFF, READY, 1)
    assert [data[:4] for _, _, data in queue.take_used()] == [b"\0\0\0\0"]
    queue.add(writable=[64])
    assert queue.notification_wanted()
    driver.kick(CONTROL_IN)
    assert [data[:4] for _, _, data in queue.take_used()] == [b"\1\0\0\0"]


def test_each_port_has_its_own_bytes(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    for port, index in enumerate((1, 5, 7)):
        driver.queues[index].add([b"port %d" % port])
        driver.kick(index)
    assert multi.written == [b"port 0", b"port 1", b"port 2"]
    for port, index in enumerate((0, 4, 6)):
        driver.queues[index].add(writable=[16])
        assert multi.console.receive(port, b"to %d" % port) == 4
        assert [data for _, _, data in driver.queues[index].take_used()] == [b"to %d" % port]
    assert driver.interrupt.take() == [1, 5, 7, 0, 4, 6]


def test_a_port_that_the_guest_has_not_opened_takes_nothing(multi: Host, make_driver: MakeDriver) -> None:
    """Linux throws away what comes to a closed port; the host keeps it until somebody listens."""
    driver = make_driver(multi.console)
    connect(driver)
    driver.queues[4].add(writable=[16])
    say(driver, 1, OPEN, 0)
    driver.run_posted()
    assert multi.console.receive(1, b"x") == 0
    rooms = multi.rooms[1]
    driver.kick(4)
    assert multi.rooms[1] == rooms
    say(driver, 1, OPEN, 1)
    driver.run_posted()
    assert multi.rooms[1] == rooms + 1
    assert multi.console.receive(1, b"x") == 1


def test_the_host_opens_and_closes_its_end(multi: Host, make_driver: MakeDriver) -> None:
    console = multi.console
    console.set_open(1, False)
    driver = make_driver(console)
    connect(driver)
    console.set_open(1, False)
    assert hear(driver) == []
    console.set_open(1, True)
    assert hear(driver) == [(1, OPEN, 1, b"")]
    assert driver.interrupt.take() == [CONTROL_IN]
    say(driver, 1, PORT_READY, 1)
    assert hear(driver)[-1] == (1, OPEN, 1, b"")


def test_a_resize_is_told_in_both_ways(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    multi.console.resize(100, 30)
    assert hear(driver) == [(0, RESIZE, 0, struct.pack("<HH", 100, 30))]
    assert driver.interrupt.configs == 1
    multi.console.resize(90, 20, port=2)
    assert hear(driver) == [(2, RESIZE, 0, struct.pack("<HH", 90, 20))]
    assert driver.interrupt.configs == 1
    assert driver.transport.read_config(0, 4) == struct.pack("<HH", 100, 30)
    multi.console.resize(1, 1, port=1)  # no console
    assert hear(driver) == []


def test_of_sizes_that_wait_the_last_one_counts(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    queue = driver.queues[CONTROL_IN]
    queue.set_available_index(multi.console._queues[CONTROL_IN].state.next_available)  # nothing left for the device
    for columns in range(1000):
        multi.console.resize(columns + 1, 25)
    assert len(multi.console.state.control) == 1
    queue.add(writable=[64])
    driver.kick(CONTROL_IN)
    assert [data[8:] for _, _, data in queue.take_used()] == [struct.pack("<HH", 1000, 25)]


def test_a_driver_without_ports_has_port_0_alone(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    driver.start(F_SIZE, sizes=(64, 64, 0, 0, 0, 0, 0, 0))
    driver.queues[0].add(writable=[8])
    assert multi.console.receive(0, b"x") == 1
    assert multi.console.receive(1, b"x") == 0
    multi.console.resize(10, 10)
    assert driver.interrupt.configs == 1
    assert multi.console.state.control == []


def test_a_reset_forgets_the_drivers_ports(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    multi.console.set_open(1, False)
    driver.transport.write_status(0)
    assert multi.console.state.guest_open == multi.console.state.introduced == [False] * 3
    assert multi.console.state.host_open == [True, False, True]
    connect(driver)
    assert multi.console.state.guest_open == [True] * 3


def test_a_console_made_from_the_state_of_another_goes_on(multi: Host, make_driver: MakeDriver, ram: GuestMemory) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    multi.console.resize(100, 30)
    state = multi.console.state
    other = Console(multi.console.ports, state)
    transport = Driver(other, ram, state=driver.transport.state).transport
    assert other.state == state
    driver.queues[4].add(writable=[4])
    assert other.receive(1, b"on") == 2
    assert transport.read_config(0, 4) == struct.pack("<HH", 100, 30)
    transport.close()


@pytest.mark.parametrize("count", [0, MAX_PORTS + 1])
def test_the_number_of_ports_is_bounded(count: int) -> None:
    with pytest.raises(ValueError, match=f"a console with {count} ports"):
        Console([Port(lambda data: None)] * count)


# Drivers that lie


def lie_in(queue: DriverQueue, flags: int) -> None:
    queue.describe(0, 0x100000, 16, flags)
    queue.make_available(0)


def test_a_transmit_buffer_that_can_be_written(single: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(single.console)
    lie_in(driver.start()[1], WRITE)
    driver.kick(1)
    assert driver.is_broken
    assert "transmit buffer" in driver.warnings[0]
    assert single.written == [b""]


def test_a_receive_buffer_that_cannot_be_written(single: Host, make_driver: MakeDriver) -> None:
    """It comes to light when the host types."""
    driver = make_driver(single.console)
    lie_in(driver.start()[0], 0)
    driver.kick(0)
    assert not driver.is_broken
    assert single.console.receive(0, b"x") == 0
    assert driver.is_broken
    assert driver.interrupt.configs == 1
    assert "receive buffer" in driver.warnings[0]
    assert single.console.receive(0, b"x") == 0
    (receive, _) = driver.start()
    receive.add(writable=[4])
    assert single.console.receive(0, b"x") == 1


def test_a_bad_buffer_that_is_met_while_a_port_opens(multi: Host, make_driver: MakeDriver) -> None:
    """The host feeds the port as soon as it opens."""
    driver = make_driver(multi.console)
    connect(driver)

    def feed() -> None:
        multi.console.receive(1, b"x")

    multi.console.ports[1].on_room = feed
    lie_in(driver.queues[4], 0)
    driver.queues[CONTROL_OUT].add([struct.pack("<IHH", 1, OPEN, 1)])
    driver.queues[CONTROL_OUT].add([struct.pack("<IHH", 2, OPEN, 1)])
    driver.kick(CONTROL_OUT)
    driver.run_posted()
    assert driver.is_broken
    connect(driver)
    assert not driver.is_broken


@pytest.mark.parametrize("message", [b"", b"\0" * 7])
def test_a_control_message_that_is_too_short(multi: Host, make_driver: MakeDriver, message: bytes) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    if message:
        driver.queues[CONTROL_OUT].add([message])
    else:
        lie_in(driver.queues[CONTROL_OUT], WRITE)
    driver.kick(CONTROL_OUT)
    assert driver.is_broken
    assert f"is 8 bytes to read, and not {len(message)}" in driver.warnings[0]


def test_control_messages_that_mean_nothing(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    connect(driver)
    for port, event, value in ((3, OPEN, 1), (0xFFFFFFFF, PORT_READY, 1), (0, 99, 1), (0, ADD, 1), (0, PORT_READY, 0)):
        say(driver, port, event, value, b"and more")
    say(driver, 0, READY, 0)
    assert hear(driver) == []
    assert not driver.is_broken


def test_a_buffer_too_small_for_its_message(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    driver.start()
    driver.queues[CONTROL_IN].add(writable=[7])
    say(driver, 0, READY, 1)
    assert driver.is_broken
    assert "a buffer of 7 bytes for a control message of 8" in driver.warnings[0]


def test_a_driver_that_asks_and_takes_nothing(multi: Host, make_driver: MakeDriver) -> None:
    driver = make_driver(multi.console)
    driver.start()
    for _ in range(MAX_CONTROL_PENDING // 3 + 1):
        say(driver, 0, READY, 1)
        assert len(multi.console.state.control) <= MAX_CONTROL_PENDING
    assert driver.is_broken
    assert "control messages wait" in driver.warnings[0]


# Streams: a port that is alone and has a name, and one of which nothing may be lost


def test_a_port_alone_that_has_a_name(make_driver: MakeDriver) -> None:
    console = Console([Port(lambda data: None, name="agent", is_console=False)], multiport=True)
    assert (console.features, console.queue_max_sizes) == (F_SIZE | F_MULTIPORT, (64,) * 4)
    driver = make_driver(console)
    driver.start()
    for _ in range(8):
        driver.queues[CONTROL_IN].add(writable=[64])
    driver.kick(CONTROL_IN)
    say(driver, 0xFFFFFFFF, READY, 1)
    assert hear(driver) == [(0, ADD, 0, b"")]
    say(driver, 0, PORT_READY, 1)
    assert hear(driver) == [(0, NAME, 1, b"agent"), (0, OPEN, 1, b"")]


def test_what_a_stream_has_no_room_for_stays_with_the_guest(make_driver: MakeDriver) -> None:
    written: list[bytes] = []
    room = 2
    console = Console(
        [Port(written.append, name="agent", is_console=False, has_room=lambda: len(written) < room)], multiport=True
    )
    driver = make_driver(console)
    connect(driver)
    transmit = driver.queues[transmit_queue(0)]
    for number in range(4):
        transmit.add([b"%d" % number])
    driver.kick(transmit_queue(0))
    assert written == [b"0", b"1"]
    assert len(transmit.take_used()) == 2
    driver.kick(transmit_queue(0))
    assert written == [b"0", b"1"]
    room = 4
    driver.kick(transmit_queue(0))
    assert written == [b"0", b"1", b"2", b"3"]
    assert len(transmit.take_used()) == 2
    assert not driver.is_broken
