"""`[[pmem]]`: a file of the host as memory of the guest, /dev/pmem0 and so on, without a page cache in the guest."""

from __future__ import annotations

from vmservice.config.names import read_device_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("name", "path", "readonly")
ARRAY = True
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.pmem"
ORDER = 55

# With RAM's two regions they leave room among the eight that a back end in another process may have (vhost-user).
PMEM_MAX = 4


class PmemDevice:
    """`path` is absolute."""

    kind = "pmem"
    plug = PLUG

    __slots__ = ("name", "path", "readonly")

    def __init__(self, name: str, path: str, *, readonly: bool = False) -> None:
        self.name: Final = name
        self.path: Final = path
        self.readonly: Final = readonly


def read(reader: TableReader, _config: Config) -> tuple[PmemDevice, ...]:
    return tuple(
        PmemDevice(
            read_device_name(reader, where, f"pmem{number}"),
            reader.required_file(where, "path"),
            readonly=reader.boolean(where, "readonly", False),
        )
        for number, where in enumerate(reader.several("pmem", PMEM_MAX))
    )


def check_files(device: PmemDevice, path: str) -> None:
    from vmservice.host.pmem_file import check_pmem

    check_pmem(device.path, f"{path}: pmem {device.name}", writable=not device.readonly)
