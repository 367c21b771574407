"""`[balloon]`: memory that the guest is asked to lend back to the host."""

from __future__ import annotations

from vmservice.config.core import PAGE_BYTES
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("size",)
ARRAY = False
LIVE = ("size",)
PLUG = "vmservice.plug.balloon"
ORDER = 40


class BalloonDevice:
    """`size` is what the guest is asked for from its start, in bytes: whole pages, fewer than it has."""

    kind = "balloon"
    plug = PLUG
    name = "balloon"

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size: Final = size


def read(reader: TableReader, config: Config) -> tuple[BalloonDevice, ...]:
    if not reader.has("balloon"):
        return ()
    size = reader.size("balloon", "size", 0)
    if size % PAGE_BYTES:
        reader.refuse("balloon", "size", f"a multiple of {PAGE_BYTES} bytes")
    if size >= config.memory.size_bytes:
        reader.refuse("balloon", "size", f"less than memory.size, which is {config.memory.size_bytes} bytes", ["memory.size"])
    return (BalloonDevice(size),)


def check_live(device: BalloonDevice, memory_bytes: int) -> None:
    """ConfigError unless a VM that has `memory_bytes` until it is restarted can do it."""
    if device.size >= memory_bytes:
        has = f"this VM has {memory_bytes} bytes of memory until it is restarted"
        raise ConfigError(f"balloon.size is {device.size} bytes, and {has}")
