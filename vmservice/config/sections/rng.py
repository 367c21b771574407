"""`[rng]`: a source of random numbers for the guest."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("enabled",)
ARRAY = False
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.rng"
ORDER = 30


class RngDevice:
    kind = "rng"
    plug = PLUG
    name = "rng"

    __slots__ = ()


def read(reader: TableReader, _config: Config) -> tuple[RngDevice, ...]:
    return (RngDevice(),) if reader.boolean("rng", "enabled", True) else ()
