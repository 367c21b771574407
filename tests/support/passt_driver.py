"""A driver for a network that the real passt serves, without a guest: frames made by hand, in a program of its own.

passt_driver.py SOCKET UNIT SCENARIO: SOCKET is where passt is to be found, which the service UNIT runs. The device is what a VM
would have, by vhost-user or, with an old passt, at a stream. Prints a line for each step that was seen; a step that is not seen
in time ends it with an error.
"""

from __future__ import annotations

import _thread
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from support.virtqueue import Driver, DriverQueue

from vmservice.config.sections.network import NetworkDevice
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.memory import backing
from vmservice.plug import passt
from vmservice.plug.external import ExternalBackend
from vmservice.plug.passt_stream import StreamBackend

MIB = 1 << 20
TIMEOUT_SEC = 60.0
RECEIVE, TRANSMIT = 0, 1
HEADER_BYTES = 12
MAC = bytes.fromhex("02000a0b0c0d")
ANY = b"\xff" * 6
DHCP_MAGIC = b"\x63\x82\x53\x63"
DISCOVER, OFFER = 1, 2
OPTION_DNS, OPTION_MTU, OPTION_KIND = 6, 26, 53
BUFFERS = 16
BUFFER_BYTES = 4096
QUEUE_SIZE = 64


class Slot:
    """What a plug sees of a slot; `turn` is the event loop."""

    def __init__(self) -> None:
        self.label = "lan"
        self.lock = _thread.allocate_lock()
        self.memory = backing.allocate([(0, 2 * MIB)], shared=True)
        self.posted: list[Callable[[], None]] = []
        self.timers: list[tuple[float, SimpleNamespace]] = []
        self.driver: Driver | None = None

    def state_of(self, _kind: object) -> None:
        return None

    def post(self, callback: Callable[[], None]) -> None:
        self.posted.append(callback)

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> Any:
        timer = SimpleNamespace(callback=callback)
        timer.cancel = lambda: setattr(timer, "callback", lambda: None)
        self.timers.append((time.monotonic() + delay_sec, timer))
        return timer

    def warn(self, text: str) -> None:
        print(f"warning: {text}", flush=True)

    def bug(self, error: Exception) -> None:
        print(f"bug: {error!r}", flush=True)

    def place(self, device: Any, rings: Any) -> Any:
        self.driver = Driver(device, self.memory, rings=rings, lock=self.lock)
        virtio = self.driver.transport
        return SimpleNamespace(virtio=virtio, state=virtio.state, start=virtio.start, close=virtio.close)

    def turn(self) -> None:
        due = [timer for at, timer in self.timers if at <= time.monotonic()]
        self.timers = [entry for entry in self.timers if entry[1] not in due]
        posted, self.posted = self.posted, []
        with self.lock:
            for callback in [*posted, *(timer.callback for timer in due)]:
                callback()


class Wire:
    """Frames to and from passt. `links` is what the driver has seen of its link, down and up."""

    def __init__(self, path: str, forward: tuple[str, ...] = ()) -> None:
        section = NetworkDevice("lan", MAC, mtu=65520, forward=forward)
        if passt.is_by_vhost_user(section):
            link = BackEndLink(path, "passt", 0, "start it", known_queues=2)
            link.open()
            self.backend: ExternalBackend | StreamBackend = ExternalBackend(link)
            print(f"vhost-user, features {link.features:#x}")
        else:
            self.backend = StreamBackend(path, "passt", "start it", MAC)
            self.backend.open()
            print("stream")
        self.slot = Slot()
        self.plug = passt.build(section, self.backend, self.slot)  # type: ignore[arg-type]
        assert self.slot.driver is not None
        self.driver = self.slot.driver
        self.plug.start()
        self.links = [True]
        self.queues: list[DriverQueue] = []
        self.start()

    def start(self) -> None:
        with self.slot.lock:
            sizes = [QUEUE_SIZE] * len(self.driver.device.queue_max_sizes)
            self.queues = self.driver.start(sizes=sizes)
        for _ in range(BUFFERS):
            self.queues[RECEIVE].add([], [BUFFER_BYTES])
        self.kick(RECEIVE)

    def kick(self, index: int) -> None:
        with self.slot.lock:
            self.driver.kick(index)

    def send(self, frame: bytes) -> None:
        self.queues[TRANSMIT].take_used()
        self.queues[TRANSMIT].add([bytes(HEADER_BYTES) + frame.ljust(60, b"\0")])
        self.kick(TRANSMIT)

    def turn(self) -> None:
        time.sleep(0.002)
        self.slot.turn()
        self.driver.run_posted()
        is_up = bool(self.driver.transport.read_config(6, 1)[0] & 1)
        if is_up != self.links[-1]:
            self.links.append(is_up)

    def receive(self, wanted: Callable[[bytes], bool], asked: bytes = b"") -> bytes:
        """The next frame that is wanted. What is `asked` is sent again each second, for a network may lose it."""
        deadline, ask_at = time.monotonic() + TIMEOUT_SEC, 0.0
        while (now := time.monotonic()) < deadline:
            if asked and now >= ask_at:
                ask_at = now + 1
                self.send(asked)
            for _, _, data in self.queues[RECEIVE].take_used():
                self.queues[RECEIVE].add([], [BUFFER_BYTES])
                self.kick(RECEIVE)
                if wanted(data[HEADER_BYTES:]):
                    return data[HEADER_BYTES:]
            self.turn()
        raise SystemExit(f"no such frame in {TIMEOUT_SEC} s; link {self.links}")

    def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT_SEC
        while not holds():
            if time.monotonic() > deadline:
                raise SystemExit(f"not in {TIMEOUT_SEC} s; link {self.links}")
            self.turn()

    def has_seen(self, links: list[bool]) -> bool:
        return self.links == links

    def close(self) -> None:
        self.plug.close()
        self.backend.close()
        self.slot.memory.close()


def checksum(data: bytes) -> int:
    """Of IP's header (RFC 1071)."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def discover() -> bytes:
    """A DHCPDISCOVER (RFC 2131) for MAC."""
    bootp = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000) + bytes(16) + MAC.ljust(16, b"\0") + bytes(192)
    bootp += DHCP_MAGIC + bytes([OPTION_KIND, 1, DISCOVER, 55, 3, OPTION_DNS, OPTION_MTU, 3, 255])
    udp = struct.pack(">HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return ANY + MAC + b"\x08\0" + ip + udp


def is_offer(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\0" and frame[23:24] == b"\x11" and frame[34:38] == struct.pack(">HH", 67, 68)


def options(offer: bytes) -> dict[int, bytes]:
    found, rest = {}, offer[offer.index(DHCP_MAGIC) + 4 :]
    while rest and rest[0] != 255:
        found[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return found


def lease(wire: Wire) -> str:
    """The address that is offered, and what else."""
    offer = wire.receive(is_offer, discover())
    said = options(offer)
    assert said[OPTION_KIND] == bytes([OFFER])
    mtu = int.from_bytes(said.get(OPTION_MTU, b""), "big")
    dns = socket.inet_ntoa(said[OPTION_DNS][:4]) if OPTION_DNS in said else "none"
    # The BOOTP header is behind Ethernet's, IP's and UDP's.
    return f"address {socket.inet_ntoa(offer[42 + 16 : 42 + 20])}, mtu {mtu}, dns {dns}"


def arp(wire: Wire, address: str) -> str:
    """Who has `address`."""
    asked = struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MAC, bytes([169, 254, 2, 1]), bytes(6), socket.inet_aton(address))
    frame = ANY + MAC + b"\x08\x06" + asked
    answer = wire.receive(lambda one: one[12:14] == b"\x08\x06" and one[20:22] == b"\0\2", frame)
    return answer[22:28].hex(":")


def is_opened(frame: bytes, port: int) -> bool:
    """IPv4 without options, TCP to that port, with SYN and nothing else."""
    kind = frame[12:14], frame[23:24], frame[36:38], frame[47:48]
    return kind == (b"\x08\0", b"\x06", struct.pack(">H", port), b"\2")


def forwarded(wire: Wire, port: int, guest_port: int) -> None:
    """A connection to the host's port is one to the guest's."""
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        wire.receive(partial(is_opened, port=guest_port))


def main(path: str, unit: str, scenario: str) -> None:
    wire = Wire(path, ("5300:53/udp",) if scenario == "datagrams" else ())
    print(lease(wire))
    if scenario == "traffic":
        print(f"arp {arp(wire, '169.254.2.2')}")
        forwarded(wire, 8080, 80)
        print("forwarded")
        for _ in range(5):
            assert wire.driver.transport.stop()
            wire.driver.transport.start()
            lease(wire)
        print("paused")
        wire.start()
        lease(wire)
        print("reset")
    if scenario == "datagrams":
        wire.plug.pause()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for _ in range(10):
                client.sendto(b"hello", ("127.0.0.1", 5300))
        wire.plug.resume()
        print(f"after datagrams: {lease(wire)}")
    if scenario == "killed":
        for number in range(1, 4):
            kill(unit)
            wire.until(partial(wire.has_seen, [True, *[False, True] * number]))
            print(f"again: {lease(wire)}")
        assert wire.driver.transport.stop()
        kill(unit)
        time.sleep(1)
        wire.driver.transport.start()
        print(f"after a pause: {lease(wire)}")
    if scenario == "lies":
        queue = wire.queues[TRANSMIT]
        queue.describe(0, 1 << 40, 4096)
        queue.make_available(0)
        wire.kick(TRANSMIT)
        wire.until(lambda: wire.links.count(False) >= 2 or wire.driver.is_broken)
        print("a driver that lies has a link that is down" if not wire.driver.is_broken else "a driver that lies has to reset")
        wire.start()
    wire.close()
    print("end", flush=True)


def kill(unit: str) -> None:
    subprocess.run(["systemctl", "kill", "--signal=KILL", unit], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
