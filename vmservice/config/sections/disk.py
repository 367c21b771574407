"""`[[disk]]`: a disk of the guest, /dev/vda and so on, in an image file or a block device of the host."""

from __future__ import annotations

from vmservice.config.names import NAME_MAX_LENGTH, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("name", "path", "format", "readonly", "serial", "cache", "discard", "ephemeral", "queues")
ARRAY = True
LIVE: tuple[str, ...] = ()
# A reload is told to each disk: its image may be larger than before.
FOLLOWS_HOST = True
PLUG = "vmservice.plug.disk"
ORDER = 50

DISKS_MAX = 16
QUEUES_MAX = 4
SERIAL_MAX_BYTES = 20  # virtio 1.2 §5.2.6


class DiskDevice:
    """`path` is absolute; `is_direct` bypasses the host's page cache; `queues` is how many virtqueues the guest gets."""

    kind = "disk"
    plug = PLUG

    __slots__ = ("discard", "ephemeral", "is_direct", "name", "path", "queues", "readonly", "serial")

    def __init__(
        self,
        name: str,
        path: str,
        *,
        readonly: bool = False,
        serial: str = "",
        is_direct: bool = False,
        discard: bool = True,
        ephemeral: bool = False,
        queues: int = 1,
    ) -> None:
        self.name: Final = name
        self.path: Final = path
        self.readonly: Final = readonly
        self.serial: Final = serial
        self.is_direct: Final = is_direct
        self.discard: Final = discard
        self.ephemeral: Final = ephemeral
        self.queues: Final = queues


def read(reader: TableReader, config: Config) -> tuple[DiskDevice, ...]:
    disks: dict[str, DiskDevice] = {}
    for number, where in enumerate(reader.several("disk", DISKS_MAX)):
        disk = _read_one(reader, where, f"disk{number}", config.cpus.max)
        if disk.name in disks:
            raise reader.refusal(where, "name", f"a name of its own; another [[disk]] is called {disk.name}")
        disks[disk.name] = disk
    return tuple(disks.values())


def _read_one(reader: TableReader, where: str, default_name: str, vcpus: int) -> DiskDevice:
    name = reader.text(where, "name", default_name)
    if not is_name(name):
        letters = "A-Z a-z 0-9 _ . - that begin with a letter or digit"
        raise reader.refusal(where, "name", f"1 to {NAME_MAX_LENGTH} of {letters}")
    if reader.choice(where, "format", ("raw", "qcow2"), "") != "raw":
        raise reader.refusal(where, "format", '"raw": it is never guessed, and this version serves no other')
    readonly = reader.boolean(where, "readonly", False)
    is_direct = reader.choice(where, "cache", ("writeback", "direct"), "writeback") == "direct"
    ephemeral = reader.boolean(where, "ephemeral", False)
    if ephemeral and readonly:
        raise reader.refusal(where, "ephemeral", "false with readonly, for then nothing is written")
    if ephemeral and is_direct:
        raise reader.refusal(where, "cache", '"writeback" with ephemeral, for nothing that is written is kept')
    return DiskDevice(
        name,
        reader.required_file(where, "path"),
        readonly=readonly,
        serial=_serial(reader, where, name),
        is_direct=is_direct,
        discard=reader.boolean(where, "discard", True),
        ephemeral=ephemeral,
        queues=reader.integer(where, "queues", 0, QUEUES_MAX, 0) or min(vcpus, QUEUES_MAX),
    )


def _serial(reader: TableReader, where: str, name: str) -> str:
    """By default the name, where that is not too long: the guest has the disk as /dev/disk/by-id/virtio-SERIAL."""
    serial = reader.text(where, "serial", name if len(name) <= SERIAL_MAX_BYTES else "")
    if len(serial) > SERIAL_MAX_BYTES or not serial.isascii() or not serial.isprintable():
        raise reader.refusal(where, "serial", f"at most {SERIAL_MAX_BYTES} printable ASCII characters")
    return serial


def check_files(device: DiskDevice, path: str) -> None:
    from vmservice.host.storage import check_image

    check_image(device.path, f"{path}: disk {device.name}", writable=not (device.readonly or device.ephemeral))
