"""PCI bus 0, and the two ways to its configuration space: ports 0xcf8 and 0xcfc, and the ECAM window in memory.

The only bus of the only segment, with function 0 at each of its 32 slots and nothing elsewhere. Who is not there reads as all
ones, which a guest takes for an empty slot (PCI Local Bus 3.0 §6.1).
"""

from __future__ import annotations

import _thread
import time

from vmservice.devices.pci.bar_map import BarMap
from vmservice.devices.state import DeviceState
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.devices.bus import Bus
    from vmservice.devices.pci.function import PciFunction

SLOTS = 32
# What MCFG and the root's _CRS say there is. Linux looks into every slot of every bus that MCFG declares, found or not: 256
# buses are 8,192 reads, or exits, more than one.
BUSES = 1

# The ports of configuration mechanism #1 (§3.2.2.3.2): an address and a window of four bytes each.
CONFIG_ADDRESS = 0
CONFIG_DATA = 4

# CONFIG_ADDRESS: enable, then bus, device, function and a register of four bytes; the other bits are reserved and read as 0.
ADDRESS_ENABLE = 1 << 31
_ADDRESS_WRITABLE = ADDRESS_ENABLE | 0xFFFFFC
_ADDRESS_SIZE = 4

# ECAM (PCI Express 5.0 §7.2.2): 4 KiB a function, 8 functions a device, 32 devices a bus.
_ECAM_FUNCTION_SHIFT = 12
_ECAM_FUNCTION_SIZE = 1 << _ECAM_FUNCTION_SHIFT
ECAM_SIZE = BUSES << 20


class ConfigPortsState(DeviceState):
    """What was last written to the address port."""

    __slots__ = ("address",)

    def __init__(self) -> None:
        self.address = 0


class PciBusState(DeviceState):
    """What is the bus's own: each function has a state of its own. `answering`: (slot, BAR) of the BARs that answer, in pairs.

    It does not follow from where they lie: of two on one spot, that one answers which was there first.
    """

    __slots__ = ("answering", "config_ports")
    PARTS: dict[str, type[DeviceState]] = {"config_ports": ConfigPortsState}  # noqa: RUF012

    def __init__(self) -> None:
        self.answering: list[list[int]] = []
        self.config_ports = ConfigPortsState()


class PciBus:
    """Functions by slot. `mmio` is where their BARs answer, except on `reserved` ranges (base, size in bytes, name).

    `config_ports` is the device for eight I/O ports from 0xcf8, `ecam` the one for the ECAM window; `lock` is held during each
    access to them. A function's own lock is taken under it, never the other way round.

    No BAR answers before `start`: a bus that goes on from a `state` needs all its functions for that, each in its slot.
    """

    def __init__(
        self,
        mmio: Bus,
        *,
        reserved: Sequence[tuple[int, int, str]],
        warn: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
        state: PciBusState | None = None,
    ) -> None:
        state = state or PciBusState()
        self.lock = _thread.allocate_lock()
        self.functions: dict[int, PciFunction] = {}
        self._bar_map = BarMap(mmio, reserved, warn, monotonic)
        self._answered_before = state.answering
        self._started = False
        self.config_ports = ConfigPorts(self, state.config_ports)
        self.ecam = Ecam(self)

    def reserve(self, base: int, size: int, name: str) -> None:
        """Something that is not on `mmio` answers in this range from now on: no BAR does."""
        with self.lock:
            self._bar_map.reserve(base, size, name)

    def free(self, base: int) -> None:
        """Take back what was reserved from `base` on."""
        with self.lock:
            self._bar_map.free(base)

    def insert(self, function: PciFunction, slot: int | None = None) -> int:
        """Plug `function` into `slot`, or the first free one; which one it is. ConfigError when all are taken."""
        with self.lock:
            if slot is None:
                slot = next((free for free in range(SLOTS) if free not in self.functions), None)
            if slot is None:
                raise ConfigError(f"there are too many PCI devices: the bus has {SLOTS} slots, the host bridge's among them")
            if not 0 <= slot < SLOTS or slot in self.functions:
                raise ValueError(f"PCI slot {slot} is not free: a device is plugged into a free one of 0 to {SLOTS - 1}")
            self.functions[slot] = function
            function.on_decode_changed = self._update_bars
            self._update_bars()
        return slot

    @property
    def state(self) -> PciBusState:
        state = PciBusState()
        slots = {function: slot for slot, function in self.functions.items()}
        state.answering = sorted([slots[function], bar.index] for function, bar in self._bar_map.answering())
        state.config_ports = self.config_ports.state
        return state

    def start(self) -> None:
        """Let BARs answer from now on, where the guest wants them."""
        with self.lock:
            self._started = True
            self._update_bars(first=[(slot, index) for slot, index in self._answered_before])

    def function(self, bus: int, devfn: int) -> PciFunction | None:
        """Who answers to the bus number and to `devfn`: five bits of device, three of function."""
        return self.functions.get(devfn >> 3) if bus == 0 and devfn & 7 == 0 else None

    def _update_bars(self, first: Sequence[tuple[int, int]] = ()) -> None:
        """BARs named in `first`, by slot and index, go before others."""
        if not self._started:
            return
        bars = [(slot, function, bar) for slot, function in sorted(self.functions.items()) for bar in function.bars]
        bars.sort(key=lambda item: (item[0], item[2].index) not in first)
        self._bar_map.update([(f"00:{slot:02x}.0", function, bar) for slot, function, bar in bars])


class ConfigPorts:
    """The eight ports from 0xcf8."""

    def __init__(self, bus: PciBus, state: ConfigPortsState) -> None:
        self.state = state
        self._bus = bus

    def read(self, offset: int, size: int) -> bytes:
        if offset == CONFIG_ADDRESS and size == _ADDRESS_SIZE:
            return self.state.address.to_bytes(_ADDRESS_SIZE, "little")
        function = self._selected(offset)
        if function is None:
            return b"\xff" * size
        return function.read_config(self._register(offset), size)

    def write(self, offset: int, data: bytes) -> None:
        """The address takes four bytes at once; a narrower access to it is no configuration cycle (§3.2.2.3.2)."""
        if offset == CONFIG_ADDRESS and len(data) == _ADDRESS_SIZE:
            self.state.address = int.from_bytes(data, "little") & _ADDRESS_WRITABLE
            return
        function = self._selected(offset)
        if function is not None:
            function.write_config(self._register(offset), data)

    def _selected(self, offset: int) -> PciFunction | None:
        address = self.state.address
        if offset < CONFIG_DATA or not address & ADDRESS_ENABLE:
            return None
        return self._bus.function(address >> 16 & 0xFF, address >> 8 & 0xFF)

    def _register(self, offset: int) -> int:
        return (self.state.address & 0xFC) + offset - CONFIG_DATA


class Ecam:
    """ECAM_SIZE bytes, or up to 256 MiB, in which every register of every function has an address. It has no state."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def read(self, offset: int, size: int) -> bytes:
        """What reaches over the end of a function's registers is nobody's, not the next function's."""
        function = self._function(offset)
        if function is None:
            return b"\xff" * size
        return function.read_config(offset % _ECAM_FUNCTION_SIZE, size)

    def write(self, offset: int, data: bytes) -> None:
        function = self._function(offset)
        if function is not None:
            function.write_config(offset % _ECAM_FUNCTION_SIZE, data)

    def _function(self, offset: int) -> PciFunction | None:
        number = offset >> _ECAM_FUNCTION_SHIFT
        return self._bus.function(number >> 8, number & 0xFF)
