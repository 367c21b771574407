"""The port through which the guest switches itself off or resets itself: ACPI's sleep control and status register
(ACPI 6.5 §4.8.3.7) and the FADT's reset register (§4.8.3.6) in one byte, as in Cloud Hypervisor.

The FADT and the `_S5_` package of the DSDT must name the same port and values.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

REGISTER = 0

RESET_VALUE = 1
SLP_EN = 1 << 5
SLP_TYP_SHIFT = 2
SLP_TYP_MASK = 7 << SLP_TYP_SHIFT
SLP_TYP_S5 = 5

# What the guest writes to go to S5: 0x34.
S5_VALUE = SLP_TYP_S5 << SLP_TYP_SHIFT | SLP_EN


class PowerRegister:
    """`on_sleep` is called when the guest enters S5, `on_reset` when it asks for a reset. It has no state of its own.

    Reads are 0: WAK_STS is never set, for nobody wakes from S5. Linux clears it by writing 0x80 before it goes to sleep;
    that, like every other value, does nothing.
    """

    def __init__(self, on_sleep: Callable[[], None], on_reset: Callable[[], None]) -> None:
        self._on_sleep = on_sleep
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        if offset != REGISTER or not data:
            return
        if data[0] == RESET_VALUE:
            self._on_reset()
        elif data[0] & (SLP_EN | SLP_TYP_MASK) == S5_VALUE:
            self._on_sleep()
