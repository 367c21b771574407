"""virtio-console (virtio 1.2 §5.3): one or several ports, each a console or a stream of bytes with a name.

With one port there are two virtqueues, and the size of the terminal is in the configuration. With several,
VIRTIO_CONSOLE_F_MULTIPORT is offered: a pair of control virtqueues more, and a pair for each further port. Emergency writes are
left out.

Linux without its commit 5326ab737a47, in 6.12 since 6.12.66, takes the size in a control message for rows and columns;
the specification and this device say columns and rows. The configuration is free of that: a console whose size matters is best
alone on its device.
"""

from __future__ import annotations

import struct

from vmservice.devices.state import DeviceState
from vmservice.devices.virtio.device import cut_config
from vmservice.devices.virtio.ids import TYPE_CONSOLE
from vmservice.errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.virtio.device import DriverPort
    from vmservice.devices.virtio.queue import Chain, Queue

# Feature bits
F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1

QUEUE_SIZE = 64
MAX_PORTS = 31  # as with QEMU

CONTROL_RECEIVE_QUEUE = 2
CONTROL_TRANSMIT_QUEUE = 3

# cols, rows, max_nr_ports, emerg_wr
_CONFIG = struct.Struct("<HHII")

# Control messages: port, event, value
CONTROL = struct.Struct("<IHH")
DEVICE_READY = 0
PORT_ADD = 1
PORT_READY = 3
CONSOLE_PORT = 4
RESIZE = 5
PORT_OPEN = 6
PORT_NAME = 7
_SIZE = struct.Struct("<HH")

# What one chain can say at most; the rest of it is lost. Linux' driver writes 32 KiB, or what a pipe holds.
MAX_WRITE_BYTES = 1 << 20

# Messages that wait for the driver's buffers. A driver that is ready gets at most five a port; one that asks on and on and
# takes none is not entitled to our memory.
MAX_CONTROL_PENDING = 8 * MAX_PORTS


class Port:
    """What a port is to the host. `sink` gets what the guest writes; it neither waits nor raises, nor calls the device.

    `on_room` is called when the guest may have room for input again; it may call `receive`. While `has_room` says no, what the
    guest writes stays with it: for streams of which nothing may be lost. Linux spins for a console that does not take its
    bytes, so a console has always room.
    """

    __slots__ = ("has_room", "is_console", "name", "on_room", "sink")

    def __init__(
        self,
        sink: Callable[[bytes], None],
        *,
        name: str = "",
        is_console: bool = True,
        on_room: Callable[[], None] | None = None,
        has_room: Callable[[], bool] | None = None,
    ) -> None:
        self.has_room = has_room
        self.sink = sink
        self.name = name
        self.is_console = is_console
        self.on_room = on_room


class ConsoleState(DeviceState):
    """By port: the terminal's columns and rows, whether the driver knows it, who has it open. `control`: messages that wait."""

    __slots__ = ("control", "guest_open", "host_open", "introduced", "sizes")

    def __init__(self, ports: int) -> None:
        self.control: list[bytes] = []
        self.guest_open = [False] * ports
        self.host_open = [True] * ports
        self.introduced = [False] * ports
        self.sizes = [[0, 0] for _ in range(ports)]


class Console:
    """The device. It keeps nothing of what the guest writes or the host types: that waits on its side, or is lost there.

    `multiport` is for a port that is alone and yet needs what only control messages can say: its name, that it is no console.
    """

    device_type = TYPE_CONSOLE

    def __init__(self, ports: Sequence[Port], state: ConsoleState | None = None, *, multiport: bool = False) -> None:
        if not 1 <= len(ports) <= MAX_PORTS:
            raise ValueError(f"a console with {len(ports)} ports; it can have 1 to {MAX_PORTS}")
        self.state = state or ConsoleState(len(ports))
        self.ports = tuple(ports)
        multiport = multiport or len(ports) > 1
        self.features = F_SIZE | F_MULTIPORT if multiport else F_SIZE
        self.queue_max_sizes = (QUEUE_SIZE,) * (2 * len(ports) + 2 if multiport else 2)
        self._queues: list[Queue] = []
        self._interrupt: DriverPort | None = None
        self._multiport = False

    # The host's side

    def receive(self, port: int, data: bytes) -> int:
        """Bytes for the guest; how many it had room for. The rest is to be offered again when `on_room` says so."""
        interrupt = self._interrupt
        if interrupt is None or not data or not self._is_open(port):
            return 0
        taken = 0
        queue = self._queues[receive_queue(port)]
        try:
            for chain in queue.take():
                _check_writable(chain)
                written_bytes = chain.write(data[taken:])
                queue.add_used(chain.head, written_bytes)
                taken += written_bytes
                if taken == len(data):
                    break
        except GuestError as error:
            interrupt.needs_reset(error)
            return taken
        if queue.publish():
            interrupt.interrupt_queue(receive_queue(port))
        return taken

    def resize(self, columns: int, rows: int, port: int = 0) -> None:
        """The terminal at `port` has another size, each of 16 bits; 0 by 0 is unknown. The configuration shows port 0's."""
        if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
            raise ValueError(f"a terminal of {columns} columns and {rows} rows; each is at most 65535")
        if self.state.sizes[port] == [columns, rows]:
            return
        self.state.sizes[port] = [columns, rows]
        if self._interrupt is None:
            return
        if port == 0:
            self._interrupt.interrupt_config()
        if self.ports[port].is_console:
            self._send_from_host(port, RESIZE, 0, _SIZE.pack(columns, rows))

    def set_open(self, port: int, is_open: bool) -> None:
        """Somebody at the host's end of `port`, or nobody: the guest's writes to a port that is no console then wait."""
        if self.state.host_open[port] != is_open:
            self.state.host_open[port] = is_open
            self._send_from_host(port, PORT_OPEN, int(is_open))

    def _is_open(self, port: int) -> bool:
        """Linux throws away what arrives at a port that nobody in the guest has open; without MULTIPORT there is no telling."""
        return self.state.guest_open[port] if self._multiport else port == 0

    # The driver's side

    def read_config(self, offset: int, size: int) -> bytes:
        return cut_config(_CONFIG.pack(*self.state.sizes[0], len(self.ports), 0), offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        """All of it is read-only: emergency writes are not offered."""

    def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
        self._queues, self._interrupt = queues, interrupt
        self._multiport = bool(features & F_MULTIPORT)

    def reset(self) -> None:
        """What the host knows stays: sizes, and who has its end open."""
        self._queues, self._interrupt, self._multiport = [], None, False
        self.state.control = []
        self.state.guest_open = [False] * len(self.ports)
        self.state.introduced = [False] * len(self.ports)

    def notify(self, index: int) -> None:
        interrupt = self._interrupt
        if interrupt is None or (index > 1 and not self._multiport):
            return
        if index == CONTROL_RECEIVE_QUEUE:
            self._flush_control(interrupt)
        elif index == CONTROL_TRANSMIT_QUEUE:
            if self._queues[index].drain(self._take_control):
                interrupt.interrupt_queue(index)
            self._flush_control(interrupt)
        elif index & 1:
            source = self.ports[port_of_queue(index)]
            if self._queues[index].drain(lambda chain: _transmit(chain, source)):
                interrupt.interrupt_queue(index)
        else:
            self._tell_room(port_of_queue(index))

    def _tell_room(self, port: int) -> None:
        on_room = self.ports[port].on_room
        if on_room is not None and self._is_open(port):
            on_room()

    # Control messages

    def _take_control(self, chain: Chain) -> int:
        if chain.writable or chain.readable_bytes < CONTROL.size:
            raise GuestError(f"a control message of the driver is {CONTROL.size} bytes to read, and not {chain.readable_bytes}")
        port, event, value = CONTROL.unpack(chain.read(CONTROL.size))
        if event == DEVICE_READY:
            for number in range(len(self.ports) if value else 0):
                self._send(number, PORT_ADD, 0)
        elif port < len(self.ports):
            if event == PORT_READY:
                self._introduce(port, bool(value))
            elif event == PORT_OPEN:
                self.state.guest_open[port] = bool(value)
                self._queues[receive_queue(port)].ask_for_turn()
        return 0

    def _introduce(self, port: int, is_ready: bool) -> None:
        """What the driver needs to know of a port that it is ready to use."""
        self.state.introduced[port] = is_ready
        if not is_ready:
            return
        host_side = self.ports[port]
        if host_side.is_console:
            self._send(port, CONSOLE_PORT, 1)
            if self.state.sizes[port] != [0, 0]:
                self._send(port, RESIZE, 0, _SIZE.pack(*self.state.sizes[port]))
        if host_side.name:
            self._send(port, PORT_NAME, 1, host_side.name.encode())
        if self.state.host_open[port]:
            self._send(port, PORT_OPEN, 1)

    def _send_from_host(self, port: int, event: int, value: int, payload: bytes = b"") -> None:
        interrupt = self._interrupt
        if interrupt is None or not self.state.introduced[port]:  # it will learn the state that is then
            return
        try:
            self._send(port, event, value, payload)
            self._flush_control(interrupt)
        except GuestError as error:
            interrupt.needs_reset(error)

    def _send(self, port: int, event: int, value: int, payload: bytes = b"") -> None:
        """Queue a message. Of sizes and of open or closed, only the last counts."""
        pending = self.state.control
        if event in (RESIZE, PORT_OPEN):
            pending[:] = [message for message in pending if CONTROL.unpack_from(message)[:2] != (port, event)]
        if len(pending) >= MAX_CONTROL_PENDING:
            raise GuestError(f"{len(pending)} control messages wait, and the driver makes no room for them")
        pending.append(CONTROL.pack(port, event, value) + payload)

    def _flush_control(self, interrupt: DriverPort) -> None:
        queue, pending = self._queues[CONTROL_RECEIVE_QUEUE], self.state.control
        for chain in queue.take() if pending else ():
            _check_writable(chain)
            if chain.writable_bytes < len(pending[0]):
                raise GuestError(f"a buffer of {chain.writable_bytes} bytes for a control message of {len(pending[0])}")
            queue.add_used(chain.head, chain.write(pending.pop(0)))
            if not pending:
                break
        if queue.publish():
            interrupt.interrupt_queue(CONTROL_RECEIVE_QUEUE)


def receive_queue(port: int) -> int:
    """The virtqueue that carries what the guest receives at `port`; what it transmits is in the one behind (§5.3.2)."""
    return 2 * port + 2 if port else 0


def transmit_queue(port: int) -> int:
    """The virtqueue that carries what the guest writes to `port`; to be notified again when the port has room again."""
    return receive_queue(port) + 1


def port_of_queue(index: int) -> int:
    """The port that a virtqueue, not one of the control virtqueues, belongs to."""
    return index // 2 - 1 if index > CONTROL_TRANSMIT_QUEUE else 0


def _transmit(chain: Chain, port: Port) -> int | None:
    if chain.writable:
        raise GuestError("a transmit buffer of the console is for the device to write, where it can only be read")
    if port.has_room is not None and not port.has_room():
        return None
    port.sink(chain.read(MAX_WRITE_BYTES))
    return 0


def _check_writable(chain: Chain) -> None:
    if chain.readable or not chain.writable:
        raise GuestError("a receive buffer of the console is for the device to read, where it can only be written")
