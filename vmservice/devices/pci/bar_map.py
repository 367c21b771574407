"""Which BARs answer on the MMIO bus, and where: the guest may move them anywhere, and none may do harm there."""

from __future__ import annotations

import time

from vmservice.devices.limited_warnings import LimitedWarnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.bus import Bus
    from vmservice.devices.pci.function import Bar, PciFunction

    Reserved = tuple[int, int, str]


class BarMap:
    """`reserved` are ranges (base, size in bytes, name) that are not on the bus and yet taken: RAM, and what KVM answers.

    A BAR that the guest puts on something else does not answer there, nor anywhere: whoever was there first stays. It answers
    as soon as it is moved away, or the other one is.
    """

    def __init__(
        self,
        mmio: Bus,
        reserved: Sequence[Reserved],
        warn: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mmio = mmio
        self._reserved = list(reserved)
        self._warn = LimitedWarnings(warn, monotonic)  # a guest may move BARs in a loop
        self._mapped: dict[Bar, tuple[PciFunction, int]] = {}
        self._blocked: dict[Bar, int] = {}

    def answering(self) -> list[tuple[PciFunction, Bar]]:
        """The BARs that answer, and whose they are."""
        return [(function, bar) for bar, (function, _) in self._mapped.items()]

    def reserve(self, base: int, size: int, name: str) -> None:
        """No BAR is to answer in this range from now on."""
        self._reserved.append((base, size, name))

    def free(self, base: int) -> None:
        """Take back what was reserved from `base` on."""
        self._reserved = [reserved for reserved in self._reserved if reserved[0] != base]

    def update(self, bars: Sequence[tuple[str, PciFunction, Bar]]) -> None:
        """Bring the bus to what the guest wants of all BARs, each with the name of its function for messages."""
        wanted = [(name, function, bar, function.decoded(bar)) for name, function, bar in bars]
        # First all that go, so that two BARs may change places.
        for _, _, bar, base in wanted:
            if bar in self._mapped and self._mapped[bar][1] != base:
                self._mmio.remove(self._mapped.pop(bar)[1])
                bar.on_mapped(None)
        for name, function, bar, base in wanted:
            if base is None:
                self._blocked.pop(bar, None)
            elif bar not in self._mapped:
                self._map(name, function, bar, base)

    def _map(self, name: str, function: PciFunction, bar: Bar, base: int) -> None:
        obstacle = self._obstacle(bar, base)
        if obstacle is None:
            self._blocked.pop(bar, None)
            self._mapped[bar] = (function, base)
            bar.on_mapped(base)
        elif self._blocked.get(bar) != base:
            self._blocked[bar] = base
            self._warn(f"the guest put BAR {bar.index} of the PCI device {name} where it cannot answer: {obstacle}")

    def _obstacle(self, bar: Bar, base: int) -> str | None:
        """Put the BAR on the bus; what is in its way, if anything is."""
        end = base + bar.size
        for other, size, name in self._reserved:
            if base < other + size and other < end:
                return f"{base:#x}-{end - 1:#x} overlaps {name} at {other:#x}-{other + size - 1:#x}"
        try:
            self._mmio.insert(base, bar.size, bar.region, bar.lock)
        except ValueError as error:
            return str(error)
        return None
