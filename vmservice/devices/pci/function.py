"""A PCI function: a type 0 header (PCI Local Bus 3.0 §6.2) and base address registers (BARs) for memory.

There is no I/O space BAR, no expansion ROM and no interrupt pin: the functions of this machine speak by MSI-X alone.
"""

from __future__ import annotations

import _thread

from vmservice.devices.pci.config_space import CONVENTIONAL_SIZE, ConfigSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.devices.bus import Device
    from vmservice.devices.pci.config_space import ConfigSpaceState

# --- the header -----------------------------------------------------------------------------------------------------------
VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION_ID = 0x08
CLASS_CODE = 0x09  # programming interface, subclass, base class
CACHE_LINE_SIZE = 0x0C
BARS = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
INTERRUPT_LINE = 0x3C

BAR_COUNT = 6
BARS_END = BARS + 4 * BAR_COUNT

COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_PARITY = 1 << 6
COMMAND_SERR = 1 << 8
COMMAND_INTX_DISABLE = 1 << 10
# I/O space stays 0, for nothing is there (§6.2.2). The others are kept: drivers read back what they wrote.
_COMMAND_WRITABLE = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE
# Errors that were seen, parity twice, aborts and SERR# (§6.2.3); nothing here sets one.
_STATUS_CLEARABLE = 0xF900

# --- a memory BAR, §6.2.5.1 -----------------------------------------------------------------------------------------------
BAR_64BIT = 0b10 << 1
BAR_PREFETCHABLE = 1 << 3
_BAR_FLAGS = 0xF
_BAR_MIN_SIZE = 16


class Identity:
    """Who a function says it is. `class_code` has 24 bits: base class, subclass, programming interface."""

    __slots__ = ("class_code", "device", "revision", "subsystem", "subsystem_vendor", "vendor")

    def __init__(
        self, vendor: int, device: int, class_code: int, *, revision: int = 0, subsystem_vendor: int = 0, subsystem: int = 0
    ) -> None:
        self.vendor = vendor
        self.device = device
        self.class_code = class_code
        self.revision = revision
        self.subsystem_vendor = subsystem_vendor
        self.subsystem = subsystem


def _nobody(base: int | None) -> None:
    """Nobody wants to know."""


class Bar:
    """The base address register `index` (and the next one, with 64 bits) of `size` bytes, behind which `region` answers.

    `lock` is held during each access to `region`.
    `on_mapped` is told the base at which the region answers from now on, and None when it has stopped; a move is told as both.
    Whoever wants to know sets it before the function is plugged in.
    """

    __slots__ = ("index", "is_64bit", "lock", "on_mapped", "region", "size")

    def __init__(self, index: int, size: int, region: Device, lock: _thread.LockType, *, is_64bit: bool) -> None:
        self.index = index
        self.size = size
        self.region = region
        self.lock = lock
        self.is_64bit = is_64bit
        self.on_mapped: Callable[[int | None], None] = _nobody


def _ignore() -> None:
    """Not on a bus yet."""


class PciFunction:
    """The base of all functions. `on_decode_changed` is the bus's: which BARs answer, or where, may have changed.

    `lock` is held during each access to a BAR; the configuration space is under the bus's.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        config_size: int = CONVENTIONAL_SIZE,
        config_state: ConfigSpaceState | None = None,
        lock: _thread.LockType | None = None,
    ) -> None:
        self.lock = lock or _thread.allocate_lock()
        self.config = config = ConfigSpace(config_size, config_state)
        self.bars: list[Bar] = []
        self.on_decode_changed: Callable[[], None] = _ignore
        config.preset(VENDOR_ID, identity.vendor, 2)
        config.preset(DEVICE_ID, identity.device, 2)
        config.preset(REVISION_ID, identity.revision, 1)
        config.preset(CLASS_CODE, identity.class_code, 3)
        config.preset(SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor, 2)
        config.preset(SUBSYSTEM_ID, identity.subsystem, 2)
        config.allow(COMMAND, _COMMAND_WRITABLE, 2)
        config.allow_clear(STATUS, _STATUS_CLEARABLE, 2)
        config.allow(CACHE_LINE_SIZE, 0xFF, 1)
        config.allow(INTERRUPT_LINE, 0xFF, 1)

    # The builder's side

    def add_bar(self, index: int, size: int, region: Device, *, is_64bit: bool, prefetchable: bool = False) -> Bar:
        """A memory BAR of `size` bytes, a power of two of at least 16. Its address is 0 until `place_bar`."""
        if size < _BAR_MIN_SIZE or size & size - 1:
            raise ValueError(f"BAR {index} of {size} bytes: a power of two of at least {_BAR_MIN_SIZE} is possible")
        if not 0 <= index < BAR_COUNT - is_64bit or any(self._overlaps(bar, index, is_64bit) for bar in self.bars):
            raise ValueError(f"BAR {index} is not free: a function has {BAR_COUNT}, and one of 64 bits takes two")
        bar = Bar(index, size, region, self.lock, is_64bit=is_64bit)
        width = 8 if is_64bit else 4
        flags = (BAR_64BIT if is_64bit else 0) | (BAR_PREFETCHABLE if prefetchable else 0)
        # Address bits below the size are wired to 0: that is how a driver learns the size, by writing all ones.
        self.config.allow(_register(bar), (1 << 8 * width) - size, width)
        self.config.preset(_register(bar), flags, width)
        self.bars.append(bar)
        return bar

    @staticmethod
    def _overlaps(bar: Bar, index: int, is_64bit: bool) -> bool:
        return bar.index <= index + is_64bit and index <= bar.index + bar.is_64bit

    def place_bar(self, bar: Bar, base: int) -> None:
        """Give the BAR an address, as firmware would; the guest may move it. It answers once memory space is enabled."""
        width = 8 if bar.is_64bit else 4
        flags = self.config.value(_register(bar), width) & _BAR_FLAGS
        if base % bar.size or not 0 <= base <= (1 << 8 * width) - bar.size:
            raise ValueError(f"BAR {bar.index} of {bar.size:#x} bytes cannot lie at {base:#x}")
        self.config.preset(_register(bar), base | flags, width)
        self.on_decode_changed()

    def decoded(self, bar: Bar) -> int | None:
        """The base at which the guest wants the BAR to answer, or None while memory space is disabled."""
        if not self.config.value(COMMAND, 2) & COMMAND_MEMORY:
            return None
        return self.config.value(_register(bar), 8 if bar.is_64bit else 4) & ~_BAR_FLAGS

    @property
    def is_bus_master(self) -> bool:
        """Whether the guest lets the function reach memory, which messages of interrupts are writes to as well (§6.2.2)."""
        return bool(self.config.state.data[COMMAND] & COMMAND_BUS_MASTER)

    # The guest's side

    def read_config(self, offset: int, size: int) -> bytes:
        return self.config.read(offset, size)

    def write_config(self, offset: int, data: bytes) -> None:
        decoding, mastering = self._decode_registers(), self.is_bus_master
        self.config.write(offset, data)
        if decoding != self._decode_registers():
            self.on_decode_changed()
        if mastering != self.is_bus_master:
            self.bus_master_changed()

    def bus_master_changed(self) -> None:
        """For functions that reach memory: nothing may be written there, and nothing read, while `is_bus_master` says no."""

    def _decode_registers(self) -> tuple[int, bytes]:
        data = self.config.state.data
        return data[COMMAND] & COMMAND_MEMORY, bytes(data[BARS:BARS_END])


def _register(bar: Bar) -> int:
    return BARS + 4 * bar.index
