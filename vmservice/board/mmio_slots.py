"""Slots of virtio's MMIO transport: a window of registers and a level-triggered pin each, which the DSDT tells the guest of."""

from __future__ import annotations

from vmservice.acpi import devices_aml
from vmservice.board.board import state_of
from vmservice.board.slot import Slot
from vmservice.devices.virtio.mmio_transport import WINDOW_BYTES, MmioState, MmioTransport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.board import Board, Tree
    from vmservice.board.slot import Services
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.rings import RingOwner


class MmioSlots:
    """Windows in the order in which devices are placed."""

    def __init__(self, board: Board, services: Services, tree: Tree | None = None) -> None:
        self._places: dict[str, list[int]] = dict((tree or {}).get("places", {}))  # base and pin
        self._board = board
        self._services = services
        self._aml: list[bytes] = []

    def slot(self, label: str, tree: Tree | None = None) -> Slot:
        return Slot(label, self._services, self._place, tree)

    def start(self) -> None:
        """Windows answer from the beginning."""

    def collect(self) -> Tree:
        """Where each device is: the guest has it from its DSDT."""
        return {"places": dict(self._places)}

    def aml(self) -> list[bytes]:
        r"""Objects for \_SB in the DSDT."""
        return self._aml

    def tables(self) -> list[bytes]:
        """Tables beside the ones that every machine has."""
        return []

    def close(self) -> None:
        """Nothing is held."""

    def _place(self, slot: Slot, device: VirtioDevice, rings: RingOwner | None) -> MmioTransport:
        board = self._board
        if slot.label in self._places:
            base, pin = self._places[slot.label]
            board.resources.mmio32.reserve(base, WINDOW_BYTES, slot.label)
            board.resources.pins.reserve(pin, 1, slot.label)
        else:
            base = board.resources.mmio32.allocate(WINDOW_BYTES, slot.label, alignment=WINDOW_BYTES)
            pin = board.resources.pins.allocate(1, slot.label)
            self._places[slot.label] = [base, pin]
        window = MmioTransport(
            device,
            slot.memory,
            board.line(pin),
            warn=slot.warn,
            post=self._services.post,
            lock=slot.lock,
            rings=rings,
            state=state_of(slot.tree, "transport", MmioState),
        )
        board.mmio.insert(base, WINDOW_BYTES, window, slot.lock)
        self._aml.append(devices_aml.virtio_mmio(len(self._aml), base, pin))
        return window
