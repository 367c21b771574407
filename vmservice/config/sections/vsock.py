"""`[vsock]`: sockets between the host and the guest, by a number for the guest (CID) instead of an address."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("cid",)
ARRAY = False
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.vsock"
ORDER = 70

# 0 is chosen for the guest, 1 is the loopback's, 2 the host's, and 2^32 - 1 is anybody (vsock(7)).
CID_MIN = 3
CID_MAX = (1 << 32) - 2


class VsockDevice:
    """`cid` is the guest's, 0 for one that is chosen when the VM starts."""

    kind = "vsock"
    plug = PLUG
    name = "vsock"

    __slots__ = ("cid",)

    def __init__(self, cid: int = 0) -> None:
        self.cid: Final = cid


def read(reader: TableReader, _config: Config) -> tuple[VsockDevice, ...]:
    if not reader.has("vsock"):
        return ()
    cid = reader.integer("vsock", "cid", 0, CID_MAX, 0)
    if 0 < cid < CID_MIN:
        reader.refuse("vsock", "cid", f"a number from {CID_MIN} to {CID_MAX}, or 0 for one that is chosen")
    return (VsockDevice(cid),)
