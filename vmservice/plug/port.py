"""`[[port]]`: all of them on one virtio-console device.

It is apart from that of hvc0, which is alone on its own: only so the size of its terminal is safe with every Linux.
"""

from __future__ import annotations

from functools import partial

from vmservice.board.input import TYPED_LIMIT_BYTES, ConsoleInput
from vmservice.board.slot import Plugged
from vmservice.devices.virtio.console import Console, ConsoleState, Port, transmit_queue
from vmservice.plug.backend import ConsolesBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.board.slot import Slot
    from vmservice.config.sections.port import PortConfig, PortsDevice
    from vmservice.host.consoles.base import Console as HostConsole
    from vmservice.plug.backend import Backend, Details, Host

# A simulated machine has it too.
IN_SIMULATION = True


class PortsPlug(Plugged):
    """`consoles` are the host's ends of `ports`, one each."""

    def __init__(self, ports: Sequence[PortConfig], consoles: Sequence[HostConsole], slot: Slot) -> None:
        self._consoles = consoles
        self._visits = [console.visit for console in consoles]
        ends = [self._port(*pair) for pair in zip(ports, consoles, strict=True)]
        self.device = Console(ends, slot.state_of(ConsoleState), multiport=True)
        super().__init__(slot, self.device)
        for number, (port, console) in enumerate(zip(ports, consoles, strict=True)):
            self.inputs[port.name] = ConsoleInput(
                slot.lock,
                partial(self.device.receive, number),
                partial(slot.on_input_room, port.name),
                waiting=slot.typed(port.name),
                # A stream's bytes belong to the conversation that its client is in: they wait on the client's side.
                limit_bytes=TYPED_LIMIT_BYTES if port.is_console else 0,
            )
            if not port.is_console:
                self._follow_client(number)
                console.on_attached = partial(slot.post, partial(self._follow_client, number))
                console.on_room = partial(slot.post, partial(self._go_on, number))

    def _port(self, port: PortConfig, console: HostConsole) -> Port:
        return Port(
            console.write,
            name=port.name,
            is_console=port.is_console,
            on_room=partial(self._feed, port.name),
            has_room=None if port.is_console else console.has_room,
        )

    def _feed(self, label: str) -> None:
        self.inputs[label].feed()

    def _follow_client(self, number: int) -> None:
        """The guest learns whether a stream has another end now, and one that waited for it goes on.

        A next client, though it came as soon as the last one had gone, is another conversation: the guest sees the end of one.
        """
        console = self._consoles[number]
        visit = console.visit
        if visit != self._visits[number]:
            self._visits[number] = visit
            self.device.set_open(number, False)
        self.device.set_open(number, console.is_attached)
        self._go_on(number)

    def _go_on(self, number: int) -> None:
        self.transport.virtio.notify(transmit_queue(number))

    def close(self) -> None:
        for console in self._consoles:
            console.on_attached = console.on_room = None
        super().close()


def open(section: PortsDevice, host: Host) -> Backend:
    consoles: list[HostConsole] = []
    try:
        for port in section.ports:
            consoles.append(host.open_console(port.name, port.output, "socket", is_stream=not port.is_console))
    except BaseException:
        ConsolesBackend(consoles).close()
        raise
    return ConsolesBackend(consoles)


def build(section: PortsDevice, backend: Backend, slot: Slot) -> Plugged:
    return PortsPlug(section.ports, backend.consoles, slot)


def details(section: PortsDevice, backend: Backend) -> dict[str, Details]:
    ends = zip(section.ports, backend.consoles, strict=True)
    return {port.name: {**console.details(), "console": port.is_console} for port, console in ends}
