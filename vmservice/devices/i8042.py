"""What a PC guest still asks of the keyboard controller and of port 0x61 beside it: a reset, and a PIT that does not hang.

There is no keyboard. The device starts at port 0x61 (system control port B) and reaches to 0x64 (the controller's command
and status port), as in Cloud Hypervisor (December 2019).
"""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Offsets from port 0x61
SYSTEM_CONTROL = 0
COMMAND = 3

# System control port B: the low four bits are what was written, the others are inputs.
WRITABLE_MASK = 0x0F
REFRESH_TOGGLE = 0x10  # turns over with each memory refresh; old firmware counts the turns to wait
TIMER_2_OUTPUT = 0x20  # always high: Linux' pit_calibrate_tsc() waits for it without a limit

# Pulse output bit 0, which is the reset line of the CPU.
CMD_RESET = 0xFE

# No data to fetch, ready for a command.
STATUS_IDLE = 0


class I8042State(DeviceState):
    __slots__ = ("control", "refresh")

    def __init__(self) -> None:
        self.control = 0
        self.refresh = 0


class I8042:
    """`on_reset` is called for each reset that the guest asks for."""

    def __init__(self, on_reset: Callable[[], None], state: I8042State | None = None) -> None:
        self.state = state or I8042State()
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._read_port(offset + position) for position in range(size))

    def write(self, offset: int, data: bytes) -> None:
        for port, value in enumerate(data, offset):
            if port == COMMAND and value == CMD_RESET:
                self._on_reset()
            elif port == SYSTEM_CONTROL:
                self.state.control = value & WRITABLE_MASK

    def _read_port(self, port: int) -> int:
        if port == SYSTEM_CONTROL:
            self.state.refresh ^= REFRESH_TOGGLE
            return TIMER_2_OUTPUT | self.state.refresh | self.state.control
        return STATUS_IDLE
