"""pvpanic: one port by which a guest's kernel says that it has panicked (QEMU, docs/specs/pvpanic.rst, ISA interface)."""

from __future__ import annotations

from vmservice.devices.state import DeviceState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LENGTH = 1

PANICKED = 0x01  # the host is to act on it
CRASH_LOADED = 0x02  # the guest deals with it itself, by a crash kernel; the host may only take note
SHUTDOWN = 0x04  # a shutdown in good order

_KNOWN = PANICKED | CRASH_LOADED | SHUTDOWN


class PvPanicState(DeviceState):
    """`told`: the bits that the host has been told of; a guest that writes them again and again is heard once."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told = 0


class PvPanic:
    """Reads are the bits that are known. Of several bits in one write each counts."""

    def __init__(
        self,
        *,
        on_panic: Callable[[], None],
        on_crash_loaded: Callable[[], None],
        on_shutdown: Callable[[], None],
        state: PvPanicState | None = None,
    ) -> None:
        self.state = state or PvPanicState()
        self._actions = ((PANICKED, on_panic), (CRASH_LOADED, on_crash_loaded), (SHUTDOWN, on_shutdown))

    def read(self, offset: int, size: int) -> bytes:
        return bytes((_KNOWN,)).ljust(size, b"\0") if offset == 0 else bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        if offset != 0 or not data:
            return
        news = data[0] & _KNOWN & ~self.state.told
        self.state.told |= news
        for bit, action in self._actions:
            if news & bit:
                action()

    def rearm(self) -> None:
        """Hear everything again: the guest was paused for what it said, and runs on."""
        self.state.told = 0
