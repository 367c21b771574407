"""`[console]`: a virtio-console as large as the terminal behind it."""

from __future__ import annotations

from functools import partial

from vmservice.board.input import ConsoleInput
from vmservice.board.slot import Plugged
from vmservice.devices.virtio.console import Console, ConsoleState, Port
from vmservice.plug.backend import ConsolesBackend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.console import ConsoleDevice
    from vmservice.host.consoles.base import Console as HostConsole
    from vmservice.plug.backend import Backend, Details, Host

# A simulated machine has it too.
IN_SIMULATION = True


class ConsolePlug(Plugged):
    def __init__(self, host_console: HostConsole, slot: Slot) -> None:
        self._host_console = host_console
        self.device = Console([Port(host_console.write, on_room=self._feed)], slot.state_of(ConsoleState))
        self._input = ConsoleInput(
            slot.lock,
            partial(self.device.receive, 0),
            partial(slot.on_input_room, slot.label),
            waiting=slot.typed(slot.label),
        )
        super().__init__(slot, self.device)
        self.inputs[slot.label] = self._input
        self._follow_size()
        host_console.on_resized = partial(slot.post, self._follow_size)
        host_console.follow_size()

    def _feed(self) -> None:
        self._input.feed()

    def _follow_size(self) -> None:
        self.device.resize(*self._host_console.size())

    def close(self) -> None:
        self._host_console.on_resized = None
        super().close()


def open(section: ConsoleDevice, host: Host) -> Backend:
    return ConsolesBackend([host.open_console(section.name, section.output, "off")])


def build(section: ConsoleDevice, backend: Backend, slot: Slot) -> Plugged:
    return ConsolePlug(backend.consoles[0], slot)


def details(section: ConsoleDevice, backend: Backend) -> dict[str, Details]:
    return {section.name: backend.consoles[0].details()}
