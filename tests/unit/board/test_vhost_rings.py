"""Virtqueues that the kernel serves, by a double of its vhost that reaches guest memory as the real one does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence

import pytest
from support import vhost_double
from support.guest_ram import MIB, guest_ram
from support.quiet import check_nothing_runs
from support.vhost_bench import CONTROL, Bench, Device, until
from support.vhost_double import GET_BASE, RECEIVE, SEND, SET_BACKEND, SET_MEM_TABLE, SET_OWNER, VhostKernel
from support.virtqueue import Driver

from vmservice.board.vhost_rings import VhostRings
from vmservice.devices.virtio.transport_state import TransportState
from vmservice.errors import HostError
from vmservice.host import vhost
from vmservice.memory.guest_memory import Region


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[VhostKernel]:
    kernel = VhostKernel()
    monkeypatch.setattr(vhost, "ioctl", kernel.ioctl)
    yield kernel
    kernel.close()


@pytest.fixture
def net(kernel: VhostKernel) -> Iterator[Bench]:
    bench = Bench(kernel, "vhost-net")
    yield bench
    bench.close()


@pytest.fixture(params=["vhost-net", "vhost-vsock"])
def bench(kernel: VhostKernel, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(kernel, request.param)
    yield bench
    bench.close()


# What is served


def test_both_ways(bench: Bench) -> None:
    bench.start()
    bench.send(b"out")
    until(lambda: bench.devices[0].sent == [b"out"])
    bench.make_room()
    bench.devices[0].deliver(b"in")
    assert bench.received() == b"in"


def test_the_driver_is_interrupted_where_it_has_no_eventfds(bench: Bench) -> None:
    """As by INTx, or with the MMIO transport: the thread makes interrupts of what the kernel writes."""
    bench.start()
    bench.make_room()
    bench.driver.interrupt.take()
    bench.devices[0].deliver(b"in")
    # First: one who looks before the interrupt comes has said not to need it.
    until(lambda: bench.driver.run_posted() or RECEIVE in bench.driver.interrupt.queues)
    assert bench.received() == b"in"


def test_the_driver_is_interrupted_by_its_own_eventfds(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(bench.queues)]
    monkeypatch.setattr(bench.driver.interrupt, "queue_eventfd", eventfds.__getitem__)
    bench.start()
    os.eventfd_read(eventfds[RECEIVE])  # of the start
    bench.make_room()
    bench.devices[0].deliver(b"in")
    until(lambda: reads(eventfds[RECEIVE]))
    assert bench.received() == b"in"
    assert bench.driver.interrupt.queues == []
    for fd in eventfds:
        os.close(fd)


def reads(eventfd: int) -> bool:
    try:
        return os.eventfd_read(eventfd) > 0
    except BlockingIOError:
        return False


def test_what_was_there_before_the_start_is_served(bench: Bench) -> None:
    with bench.transport.lock:
        queues = bench.driver.start(stop_before_ok=True)
        queues[SEND].add([b"early"], [])
        bench.transport.write_status(0x0F)
    until(lambda: bench.devices[0].sent == [b"early"])


def test_each_pair_has_its_own_descriptor(net: Bench) -> None:
    net.start()
    net.send(b"first", 1)
    net.send(b"second", 3)
    until(lambda: [device.sent for device in net.devices] == [[b"first"], [b"second"]])


def test_a_virtqueue_of_the_device_itself(net: Bench) -> None:
    net.start()
    net.driver.interrupt.take()
    net.command(b"set")
    until(lambda: net.driver.run_posted() or CONTROL in net.driver.interrupt.queues)
    assert net.received(CONTROL) == b"\0"
    assert net.commands == [b"set"]


def test_a_driver_that_uses_one_pair_has_its_control_queue_behind_that(net: Bench) -> None:
    net.start(0)
    net.command(b"set", 2)
    assert net.received(2) == b"\0"
    net.send(b"out")
    until(lambda: net.devices[0].sent == [b"out"])
    assert not any(ring.is_running for ring in net.devices[1].rings)


def test_a_driver_that_enables_only_one_virtqueue_of_a_pair(net: Bench) -> None:
    with net.transport.lock:
        net.driver.start(0, sizes=(0, 16, 0, 0, 0))
    net.send(b"out")
    until(lambda: net.devices[0].sent == [b"out"])
    assert net.transport.stop()


def test_the_kernel_is_asked_for_no_more_than_the_driver_has_chosen(bench: Bench) -> None:
    bench.start(0)
    assert bench.devices[0].features == 1 << 32


def test_the_offered_features_are_those_of_the_kernel(kernel: VhostKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vhost_double.FEATURES, "vhost-vsock", 1 << 32)
    bench = Bench(kernel, "vhost-vsock")
    assert bench.rings.transport_features == 1 << 32
    bench.close()


# Pause, reset, restore


def test_a_pause_takes_the_virtqueues_back_and_a_resume_goes_on(bench: Bench) -> None:
    bench.start()
    for number in range(3):
        bench.send(b"%d" % number)
    until(lambda: len(bench.devices[0].sent) == 3)
    bench.make_room()
    assert bench.transport.stop()
    state = bench.transport.state.queues[SEND]
    assert (state.next_available, state.next_used, state.published_used) == (3, 3, 3)
    assert bench.transport.state.queues[RECEIVE].next_available == 0
    assert not any(ring.is_running for ring in bench.devices[0].rings)
    bench.send(b"3")
    bench.devices[0].deliver(b"in")
    assert bench.devices[0].sent == [b"0", b"1", b"2"]
    bench.transport.start()
    assert bench.received() == b"in"
    until(lambda: bench.devices[0].sent[-1] == b"3")


def test_a_thousand_pauses_under_traffic_lose_nothing(bench: Bench) -> None:
    bench.start()
    for number in range(1000):
        bench.send(b"%d" % number)
        assert bench.transport.stop()
        bench.transport.start()
        until(bench.driver.queues[SEND].take_used)
    assert bench.devices[0].sent == [b"%d" % number for number in range(1000)]


def test_a_reset_by_the_driver_begins_anew(bench: Bench) -> None:
    for _ in range(3):
        bench.start()
        bench.send(b"out")
        until(bench.driver.queues[SEND].take_used)
    assert bench.devices[0].sent == [b"out"] * 3
    assert bench.kernel.asked.count(SET_OWNER) == len(bench.vhosts)


def test_another_owner_goes_on_from_the_state(bench: Bench) -> None:
    bench.start()
    for _ in range(5):
        bench.send(b"before")
    until(lambda: len(bench.devices[0].sent) == 5)
    bench.driver.queues[SEND].take_used()
    bench.make_room()
    assert bench.transport.stop()
    bench.send(b"after")
    state = TransportState.from_values(bench.transport.state.values())
    queues = bench.driver.queues
    bench.transport.close()
    bench.rings.close()
    bench.rings = bench.owner()
    bench.driver = Driver(Device(bench.queues), bench.memory, state=state, rings=bench.rings)
    bench.driver.queues = queues
    until(lambda: bench.devices[0].sent[5:] == [b"after"])
    bench.devices[0].deliver(b"in")
    assert bench.received() == b"in"


def test_a_pause_waits_for_what_the_device_itself_does(net: Bench) -> None:
    net.start()
    net.gate.clear()
    net.command(b"slow")
    until(lambda: net.commands)
    assert not net.rings.stop(0.05)
    assert not any(ring.is_running for device in net.devices for ring in device.rings)
    net.rings.go_on()
    net.send(b"out")
    until(lambda: net.devices[0].sent == [b"out"])
    net.gate.set()
    assert net.received(CONTROL) == b"\0"
    assert net.transport.stop()


def test_notifications_after_the_end_of_a_start_are_of_no_use(net: Bench) -> None:
    net.start()
    assert net.transport.stop()
    net.command(b"later")
    net.transport.start()
    assert net.received(CONTROL) == b"\0"


# Drivers that break the rules


def test_a_ring_that_lies_costs_the_driver_its_device_until_the_reset(bench: Bench) -> None:
    queue = bench.start()[SEND]
    queue.describe(5, 1 << 40, 100)
    queue.make_available(5)
    bench.driver.kick(SEND)
    said = bench.broken()
    assert "the kernel cannot make sense of what the driver has put into a virtqueue" in said
    assert not any(ring.is_running for ring in bench.devices[0].rings)
    bench.start()
    bench.send(b"out")
    until(lambda: bench.devices[0].sent == [b"out"])
    assert not bench.driver.is_broken


def test_a_wrong_command_costs_the_driver_its_device_until_the_reset(net: Bench) -> None:
    net.start()
    net.command(b"wrong")
    assert "there is no such command" in net.broken()
    assert not any(ring.is_running for device in net.devices for ring in device.rings)
    net.start()
    net.command(b"right")
    assert net.received(CONTROL) == b"\0"


# A kernel that refuses


@pytest.mark.parametrize("request_number", [SET_MEM_TABLE, SET_BACKEND])
def test_a_start_that_the_kernel_refuses_serves_nothing(net: Bench, request_number: int) -> None:
    net.kernel.refuse[request_number] = errno.ENOMEM
    with net.transport.lock, pytest.raises(AssertionError):
        net.driver.start()
    assert "cannot be served until its next reset: VHOST_" in net.driver.warnings[-1]
    assert "for network0 failed: Cannot allocate memory (errno 12)" in net.driver.warnings[-1]
    assert not any(ring.is_running for device in net.devices for ring in device.rings)
    net.start()
    net.send(b"out", 3)
    until(lambda: net.devices[1].sent == [b"out"])


def test_a_kernel_that_has_no_thread_left(net: Bench) -> None:
    fd = net.kernel.open("vhost-net")
    rings = VhostRings("network1", 3, [vhost.VhostNet(fd, "network1", net.tap)], net.memory, bug=net.bugs.append)
    net.kernel.refuse[SET_OWNER] = errno.ENOMEM
    with pytest.raises(HostError, match="VHOST_SET_OWNER for network1 failed: Cannot allocate memory"):
        rings.begin()
    rings.close()
    os.close(fd)


def test_a_kernel_that_does_not_say_where_it_stands(bench: Bench) -> None:
    bench.start()
    bench.kernel.refuse[GET_BASE] = errno.EFAULT
    assert bench.transport.stop()
    assert "VHOST_GET_VRING_BASE" in bench.broken()
    assert not any(ring.is_running for ring in bench.devices[0].rings)


# Guest memory that comes and goes


def test_memory_is_shown_as_it_comes_and_taken_as_it_goes(bench: Bench) -> None:
    more = guest_ram((8 << 30, MIB))
    bench.start()
    bench.memory.add(more.regions[0])
    assert [gpa for gpa, _, _ in bench.devices[0].regions] == [0, 4 << 30, 8 << 30]
    bench.memory.write(8 << 30, b"far")
    bench.driver.queues[SEND].describe(3, 8 << 30, 3)
    bench.driver.queues[SEND].make_available(3)
    bench.driver.kick(SEND)
    until(lambda: bench.devices[0].sent == [b"far"])
    bench.memory.remove(8 << 30)
    assert [gpa for gpa, _, _ in bench.devices[0].regions] == [0, 4 << 30]
    more.close()


def test_memory_that_the_kernel_has_no_room_for_does_not_come(bench: Bench) -> None:
    more = guest_ram((8 << 30, MIB))
    bench.start()
    bench.kernel.refuse[SET_MEM_TABLE] = errno.E2BIG
    with pytest.raises(HostError, match=r"VHOST_SET_MEM_TABLE .* failed: Argument list too long"):
        bench.memory.add(more.regions[0])
    assert len(bench.memory.regions) == 2
    more.close()
    bench.send(b"out")
    until(lambda: bench.devices[0].sent == [b"out"])


def test_memory_that_goes_while_the_kernel_holds_on_to_it_ends_the_device(bench: Bench) -> None:
    more = guest_ram((8 << 30, MIB))
    bench.start()
    bench.memory.add(more.regions[0])
    bench.kernel.refuse[SET_MEM_TABLE] = errno.EFAULT
    bench.memory.remove(8 << 30)
    more.close()
    assert not any(ring.is_running for ring in bench.devices[0].rings)
    assert "VHOST_SET_MEM_TABLE" in bench.broken()


def test_all_memory_is_shown_at_the_next_start(bench: Bench) -> None:
    more = guest_ram((8 << 30, MIB))
    region: Region = more.regions[0]
    bench.memory.add(region)
    assert SET_MEM_TABLE not in bench.kernel.asked
    bench.start()
    assert len(bench.devices[0].regions) == 3
    assert bench.transport.stop()
    bench.memory.remove(8 << 30)
    more.close()


# Nothing is left


def test_nothing_runs_when_there_is_nothing_to_do(bench: Bench) -> None:
    bench.start()
    bench.send(b"out")
    until(lambda: bench.devices[0].sent)
    check_nothing_runs()


def test_an_owner_whose_eventfds_cannot_be_made(net: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def few(value: int, flags: int) -> int:
        if len(made) == 4:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real(value, flags))
        return made[-1]

    real: Callable[[int, int], int] = os.eventfd
    monkeypatch.setattr(os, "eventfd", few)
    vhosts: Sequence[vhost.Vhost] = net.vhosts
    with pytest.raises(HostError, match=r"^no eventfd for a virtqueue of network0: Too many open files \(errno 24\)$"):
        VhostRings("network0", 5, vhosts, net.memory, bug=net.bugs.append)


# Held: the driver is there, and the kernel serves nothing


def test_while_it_is_held_the_kernel_serves_nothing_and_the_device_its_own(net: Bench) -> None:
    net.rings.hold(True)
    net.start()
    net.send(b"first")
    net.command(b"set")
    assert net.received(CONTROL) == b"\0"
    assert net.transport.stop()
    net.transport.start()
    assert net.devices[0].sent == []
    net.rings.hold(False)
    until(lambda: net.devices[0].sent == [b"first"])
    net.rings.hold(True)
    net.rings.hold(True)
    net.send(b"second")
    assert not any(ring.is_running for device in net.devices for ring in device.rings)
    net.rings.hold(False)
    until(lambda: net.devices[0].sent == [b"first", b"second"])


def test_a_kernel_that_serves_no_more_after_it_was_held(net: Bench) -> None:
    net.start()
    net.rings.hold(True)
    net.kernel.refuse[SET_BACKEND] = errno.ENOMEM
    net.rings.hold(False)
    assert "VHOST_NET_SET_BACKEND for network0 failed" in net.broken()
    net.start()
    net.send(b"out")
    until(lambda: net.devices[0].sent == [b"out"])
