"""A network at a real tap, worked by a driver: frames both ways, pauses, a tap that goes and comes, no buffers, a flood."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from support.disks import waiting
from support.net_space import Wire, frame, ip, make_tap, net_space, number_of
from support.networks import MAC, Network, section
from support.vhost_double import VhostDevice, VhostKernel

from vmservice.board.net_server import Pair
from vmservice.devices.virtio import net
from vmservice.errors import ConfigError, HostError
from vmservice.host import tap as host_tap
from vmservice.host import vhost as host_vhost
from vmservice.plug import network


@pytest.fixture(autouse=True)
def _no_vhost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: frames are moved by threads of ours, or by the double."""
    monkeypatch.setattr(host_tap, "VHOST_DEVICE", "/dev/there-is-none")


@pytest.fixture
def make() -> Iterator[Callable[..., Network]]:
    made: list[Network] = []

    def make(**keys: Any) -> Network:
        made.append(Network(section(**keys)))
        return made[-1]

    with net_space():
        make_tap("vt-web", "multi_queue")
        yield make
        for one in made:
            one.close()


@pytest.fixture
def lan(make: Callable[..., Network]) -> Network:
    lan = make()
    lan.start()
    return lan


def carrier() -> bool:
    return (
        "NO-CARRIER" not in subprocess.run(["ip", "link", "show", "vt-web"], check=True, capture_output=True, text=True).stdout
    )


def test_frames_both_ways(lan: Network) -> None:
    lan.give_buffers(100)
    for number in range(50):
        lan.wire.send(frame(number, 60 + 20 * number))
        lan.send(frame(number, 60 + 20 * number))
    assert lan.received(50) == [frame(number, 60 + 20 * number) for number in range(50)]
    assert [lan.wire.receive() for _ in range(50)] == [frame(number, 60 + 20 * number) for number in range(50)]
    lan.sent(50)
    said = lan.plug.stats()
    assert (said["received"], said["sent"], said["received_bytes"]) == (50, 50, said["sent_bytes"])
    assert (said["received_dropped"], said["sent_dropped"]) == (0, 0)
    assert lan.slot.warnings == []


def test_what_the_guest_is_told_of_its_tap(make: Callable[..., Network]) -> None:
    ip("link set vt-web mtu 9000")
    lan = make(queues=2)
    assert struct.unpack("<6sHHH", lan.plug.device.read_config(0, 12)) == (MAC, net.LINK_UP, 2, 9000)
    assert network.details(lan.section, lan.backend) == {
        "lan": {
            "mode": "tap",
            "tap": "vt-web",
            "mac": "02:00:00:00:00:01",
            "mtu": 9000,
            "queues": 2,
            "link": "up",
            "offload": True,
            "vhost": False,
        }
    }
    with pytest.raises(ConfigError, match=r"^network lan: mtu is 9001, and the tap vt-web has 9000; expected at most that$"):
        make(mtu=9001)


def test_frames_wait_in_the_tap_for_buffers(lan: Network) -> None:
    for number in range(10):
        lan.wire.send(frame(number))
    lan.send(frame(77))
    assert number_of(lan.wire.receive()) == 77, "the other way is not held up"
    lan.give_buffers(4)
    assert [number_of(one) for one in lan.received(4)] == [0, 1, 2, 3]
    lan.give_buffers(100)
    assert [number_of(one) for one in lan.received(6)] == [4, 5, 6, 7, 8, 9]


def test_a_pause_loses_and_reorders_nothing(lan: Network) -> None:
    """More than the tap itself would keep is not sent."""
    lan.give_buffers(200, 200)
    got: list[int] = []
    for round_number in range(5):
        first = 40 * round_number
        for number in range(first, first + 20):
            lan.wire.send(frame(number))
            lan.queues[1].add([bytes(12), frame(number)])
        lan.kick(1)
        lan.plug.pause()
        before = lan.queues[0].used_index(), lan.queues[1].used_index()
        for number in range(first + 20, first + 40):
            lan.wire.send(frame(number))
            lan.queues[1].add([bytes(12), frame(number)])
        lan.kick(1)
        assert (lan.queues[0].used_index(), lan.queues[1].used_index()) == before, "nothing moves"
        lan.plug.resume()
        got += [number_of(lan.wire.receive()) for _ in range(40)]
        lan.sent(40)
    assert got == list(range(200))
    assert [number_of(one) for one in lan.received(200)] == list(range(200))


def test_a_card_goes_on_from_its_state(lan: Network) -> None:
    lan.give_buffers(8)
    lan.wire.send(frame(1))
    assert len(lan.received(1)) == 1
    assert lan.command(b"\1\1", b"\2\1\2\3\4\5") == net.OK
    lan.plug.pause()
    tree = lan.plug.collect()
    assert tree["device"] == {
        "announces": False,
        "guest_offloads": -1,
        "is_up": True,
        "mac": {"bytes": "020102030405"},
        "mtu": 1500,
        "offloads": True,
        "pairs": 1,
    }
    lan.unplug()
    lan.plug_in(tree)
    lan.plug.start()
    assert lan.plug.device.read_config(0, 6) == b"\2\1\2\3\4\5"


def ipv4(protocol: int, body: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, bytes(4), bytes(4))
    return MAC + MAC + b"\x08\x00" + header + body


def test_checksums_and_segments_are_left_to_the_host(lan: Network) -> None:
    """The host is asked for what the frame's header asks for, and refuses places that are not in the frame."""
    udp = ipv4(17, struct.pack(">HHHH", 1, 2, 16, 0) + b"payload!")
    nonsense = [
        (1, 0, 0, 0, 60000, 6),
        (1, 0, 0, 0, 34, 60000),
        (1, 1, 54, 0, 34, 6),
        (0, 0xFF, 0, 1, 0, 0),
        (1, 4, 9000, 1, 34, 16),
    ]
    for fields in nonsense:
        lan.send(udp, header=struct.pack("<BBHHHHH", *fields, 0))
    lan.sent(len(nonsense))
    assert lan.plug.stats()["sent_dropped"] >= 2
    lan.wire.show_headers()
    tcp = ipv4(6, struct.pack(">HHIIHHHH", 1, 2, 0, 0, 5 << 12, 0, 0, 0) + b"segments" * 400)
    for packet, fields in ((udp[:-1] + b"?", (1, 0, 0, 0, 34, 6)), (tcp[:-1] + b"?", (1, 1, 54, 1000, 34, 16))):
        lan.send(packet, header=struct.pack("<BBHHHHH", *fields, 0))
        came = next(came for _ in waiting() if (came := lan.wire.receive()).endswith(b"?"))
        kind, segments, _, *places = struct.unpack_from("<BBHHHH", came)
        assert (kind, segments, *places) == (*fields[:2], *fields[3:]), "but for the length of headers, which is a hint"
        checksum = fields[4] + fields[5]  # what is there until it is made means nothing
        assert came[10:][:checksum] + came[10:][checksum + 2 :] == packet[:checksum] + packet[checksum + 2 :]
    assert lan.slot.warnings == []
    assert not lan.driver.is_broken


def test_a_driver_without_merged_buffers(make: Callable[..., Network]) -> None:
    lan = make()
    lan.start(net.MAC | net.STATUS)
    lan.give_buffers(3)
    lan.wire.send(frame(1, 1514))
    (one,) = lan.received(1)
    assert one == frame(1, 1514)
    lan.send(frame(2))
    assert number_of(lan.wire.receive()) == 2


def test_frames_of_every_length(lan: Network) -> None:
    """The host takes none without a header of Ethernet's, nor one that is longer than can be."""
    for first in range(1, 1600, 50):
        sizes = range(first, first + 50)
        lan.give_buffers(50, 1700 if first % 200 == 1 else 300)
        for size in sizes:
            lan.send(frame(size, size)[:size])
            if 14 <= size <= 1514:
                lan.wire.send(frame(size, size)[:size])
        lan.sent(50)
        assert [lan.wire.receive() for size in sizes if size >= 14] == [
            frame(size, size)[:size] for size in sizes if size >= 14
        ]
        expected = [frame(size, size)[:size] for size in sizes if 14 <= size <= 1514]
        assert received_whole(lan, len(expected)) == expected
    for size in (65535, 65549, 65550, 70000, 100000):
        lan.send(bytes(size))
        lan.sent(1)
    assert lan.plug.stats()["received_dropped"] == 0
    assert lan.plug.stats()["sent_dropped"] >= 13 + 2
    assert not lan.driver.is_broken


def received_whole(lan: Network, count: int) -> list[bytes]:
    """Frames without headers, each out of as many buffers as its header says."""
    parts: list[bytes] = []
    frames: list[bytes] = []
    for _ in waiting():
        parts += [data for _, _, data in lan.queues[0].take_used()]
        while parts and len(parts) >= (buffers := int.from_bytes(parts[0][10:12], "little")):
            frames.append(b"".join(parts[:buffers])[12:])
            del parts[:buffers]
        if len(frames) >= count:
            return frames
        if len(lan.queues[0]._free) > 200:
            lan.give_buffers(50, 300)
    raise AssertionError(f"{len(frames)} of {count} frames came")


def test_several_queues(make: Callable[..., Network]) -> None:
    lan = make(queues=2)
    lan.start()
    lan.give_buffers(64)
    lan.give_buffers(64, pair=1)
    assert lan.command(b"\4\0", b"\2\0") == net.OK
    lan.send(frame(1))
    lan.send(frame(2), pair=1)
    assert {number_of(lan.wire.receive()) for _ in range(2)} == {1, 2}
    lan.sent(1)
    lan.sent(1, pair=1)
    assert lan.command(b"\4\0", b"\1\0") == net.OK
    for number in range(32):
        lan.wire.send(frame(number, to=bytes((2, 0, 0, 0, 0, number))))
    assert [number_of(one) for one in lan.received(32)] == list(range(32)), "all by the pair that is left"


def test_what_the_guest_takes_is_told_to_the_tap(make: Callable[..., Network], monkeypatch: pytest.MonkeyPatch) -> None:
    lan = make()
    told: list[int] = []
    monkeypatch.setattr(lan.backend, "set_offload", told.append)
    lan.start()
    assert told == [15]
    assert lan.command(b"\5\0", struct.pack("<Q", net.GUEST_CSUM)) == net.OK
    with lan.slot.lock:
        lan.driver.start(net.MRG_RXBUF | net.GUEST_CSUM | net.GUEST_TSO4)
    assert told == [15, 1, 0, 3]


def test_a_reload_changes_link_and_offloads(lan: Network) -> None:
    lan.give_buffers(8)
    assert carrier()
    lan.plug.reconfigure(section(link="down", offload=False))
    assert not carrier()
    assert struct.unpack_from("<H", lan.plug.device.read_config(0, 12), 6) == (0,)
    assert lan.driver.interrupt.configs == 1
    lan.send(frame(1))
    lan.sent(1)
    lan.plug.reconfigure(section(link="up", offload=False))
    assert carrier()
    lan.send(frame(2))
    assert number_of(lan.wire.receive()) == 2, "the first one is lost"
    lan.wire.send(frame(3))
    assert number_of(lan.received(1)[0]) == 3
    with lan.slot.lock:
        assert not lan.driver.transport.offered_features & net.CSUM
    lan.plug.reconfigure(section())
    with lan.slot.lock:
        assert lan.driver.transport.offered_features & net.CSUM


def test_a_tap_that_is_deleted_and_made_anew(lan: Network) -> None:
    lan.give_buffers(16)
    lan.wire.send(frame(1))
    assert len(lan.received(1)) == 1
    ip("link del vt-web")
    assert lan.slot.has_posted.wait(20)
    lan.slot.run_posted()
    assert lan.slot.warnings == [
        "network lan: the tap vt-web has been deleted; the guest's link is down until it is there again"
    ]
    assert struct.unpack_from("<H", lan.plug.device.read_config(0, 12), 6) == (0,)
    lan.send(frame(2))
    lan.sent(1)
    for _ in range(20):
        lan.slot.timers.advance(30)
    assert len(lan.slot.warnings) == 1
    make_tap("vt-web", "multi_queue")
    lan.slot.timers.advance(30)
    assert lan.slot.warnings[1:] == ["network lan: the tap vt-web is there again"]
    lan.wire.close()
    lan.wire = Wire("vt-web")
    lan.wire.wait_running()
    lan.wire.send(frame(3))
    assert number_of(lan.received(1)[0]) == 3
    lan.send(frame(4))
    assert number_of(lan.wire.receive()) == 4
    lan.slot.timers.advance(100)
    assert len(lan.slot.warnings) == 2


def test_a_tap_that_is_down(lan: Network) -> None:
    ip("link set vt-web down")
    for number in range(3):
        lan.send(frame(number))
    lan.sent(3)
    assert lan.slot.warnings == [
        "network lan: the tap vt-web is down, and takes no frames; `ip link set vt-web up` changes that"
    ]
    assert lan.plug.stats()["sent_dropped"] == 3
    ip("link set vt-web up")
    lan.wire.close()
    lan.wire = Wire("vt-web")
    lan.send(frame(4))
    assert number_of(lan.wire.receive()) == 4


def test_a_guest_that_floods_is_stopped_at_once(make: Callable[..., Network], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when all is sent that it has put into its virtqueue."""

    hurry = threading.Event()

    def write_slowly(fd: int, views: Sequence[memoryview]) -> int:
        hurry.wait(0.1)
        return os.writev(fd, views)

    monkeypatch.setattr(network, "Pair", partial(Pair, writev=write_slowly))
    lan = make()
    lan.start()
    for _ in range(120):
        lan.queues[1].add([bytes(12), frame(0, 1514)])
    lan.kick(1)
    lan.plug.pause()
    assert lan.queues[1].used_index() < 120
    hurry.set()
    lan.plug.resume()
    lan.sent(120)


def test_a_driver_that_breaks_the_rules(lan: Network) -> None:
    lan.give_buffers(4)
    lan.queues[1].add([bytes(11)])
    lan.kick(1)
    for _ in waiting():
        lan.driver.run_posted()
        if lan.driver.is_broken:
            break
    assert "a frame to send has 11 bytes to read; its header alone has 12" in lan.driver.warnings[0]
    with lan.slot.lock:
        lan.queues = lan.driver.start()
    lan.send(frame(1))
    assert number_of(lan.wire.receive()) == 1


def test_descriptors_from_outside_reach_their_own_namespace() -> None:
    with net_space():
        make_tap("vt-web")
        ip("link set vt-web mtu 1400")
        passed = network.passed(section())
        with net_space():
            lan = Network(section(), passed, wire=False)
            assert (lan.backend.mtu, lan.backend.is_attached()) == (1400, True)
            lan.close()
            with pytest.raises(HostError, match=r"there is no tap vt-web; the journal of vm-tap@web:lan\.service may say why$"):
                Network(section(makes_tap=True))


# The kernel moves the frames


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[VhostKernel]:
    kernel = VhostKernel()
    monkeypatch.setattr(host_vhost, "ioctl", kernel.ioctl)
    monkeypatch.setattr(network, "open_vhosts", lambda queues: [kernel.open("vhost-net") for _ in range(queues)])
    yield kernel
    kernel.close()


def sent_by(device: VhostDevice, count: int) -> list[bytes]:
    for _ in waiting():
        if len(device.sent) >= count:
            return [data[12:] for data in device.sent]
    raise AssertionError(f"{len(device.sent)} of {count} frames are sent")


def test_the_kernel_moves_frames(kernel: VhostKernel, make: Callable[..., Network]) -> None:
    lan = make(queues=2)
    lan.start()
    lan.give_buffers(4)
    lan.send(frame(1))
    assert sent_by(kernel.devices[0], 1) == [frame(1)]
    kernel.devices[0].deliver(bytes(12) + frame(2))
    assert lan.received(1) == [frame(2)]
    assert lan.command(b"\4\0", b"\2\0") == net.OK
    lan.send(frame(3), pair=1)
    assert sent_by(kernel.devices[1], 1) == [frame(3)]
    assert kernel.devices[0].features & ~(1 << 15 | 1 << 28 | 1 << 29 | 1 << 32) == 0
    assert network.details(lan.section, lan.backend)["lan"]["vhost"] is True
    assert lan.plug.stats() == {}
    assert list(lan.backend.fds()) == ["queue0", "queue1", "vhost0", "vhost1"]
    lan.sent(1)
    lan.sent(1, pair=1)


def test_the_kernel_moves_nothing_while_the_link_is_down(kernel: VhostKernel, make: Callable[..., Network]) -> None:
    lan = make()
    lan.start()
    lan.plug.reconfigure(section(link="down"))
    lan.send(frame(1))
    assert lan.command(b"\1\1" + b"\2\0\0\0\0\7") == net.OK, "commands are answered"
    assert not any(ring.is_running for ring in kernel.devices[0].rings)
    lan.plug.pause()
    lan.plug.resume()
    assert not any(ring.is_running for ring in kernel.devices[0].rings)
    assert kernel.devices[0].sent == []
    lan.plug.reconfigure(section())
    assert sent_by(kernel.devices[0], 1) == [frame(1)]
    lan.sent(1)


def test_the_next_machine_has_the_same_descriptors(kernel: VhostKernel, make: Callable[..., Network]) -> None:
    lan = make()
    lan.start()
    lan.send(frame(1))
    assert len(sent_by(kernel.devices[0], 1)) == 1
    lan.unplug()
    lan.plug_in()
    lan.start()
    lan.send(frame(2))
    assert sent_by(kernel.devices[0], 2)[1] == frame(2)


def test_a_reload_gives_the_kernel_a_tap_that_was_made_anew(kernel: VhostKernel, make: Callable[..., Network]) -> None:
    lan = make()
    lan.start()
    ip("link del vt-web")
    lan.plug.reconfigure(section())
    assert not any(ring.is_running for ring in kernel.devices[0].rings)
    make_tap("vt-web")
    lan.plug.reconfigure(section())
    assert all(ring.is_running for ring in kernel.devices[0].rings)
    assert lan.backend.is_attached()
    assert [text.rpartition(" the tap vt-web ")[2] for text in lan.slot.warnings] == [
        "has been deleted; the guest's link is down until it is there again",
        "is there again",
    ]


def test_a_kernel_that_refuses(kernel: VhostKernel, make: Callable[..., Network]) -> None:
    kernel.refuse[0x8008AF00] = errno.EPERM
    with pytest.raises(HostError, match=r"VHOST_GET_FEATURES for the tap vt-web failed"):
        make()
    assert not kernel.devices[0].is_open
