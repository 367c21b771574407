"""`[[disk]]`: a disk of the guest, /dev/vda and so on, in an image file or a block device of the host."""

from __future__ import annotations

from vmservice.config.core import check_shared
from vmservice.config.names import read_device_name

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
QCOW2_PLUG = "vmservice.plug.qcow2_disk"
ORDER = 50

DISKS_MAX = 16
QUEUES_MAX = 4
# What is left of the 107 bytes of a socket's path in /run, or in a user's runtime directory.
QCOW2_NAMES_MAX = 70
SERIAL_MAX_BYTES = 20  # virtio 1.2 §5.2.6


class DiskDevice:
    """`path` is absolute; `is_direct` bypasses the host's page cache; `queues` is how many virtqueues the guest gets."""

    kind = "disk"

    __slots__ = ("discard", "ephemeral", "is_direct", "name", "path", "plug", "queues", "readonly", "serial")

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
        plug: str = PLUG,
    ) -> None:
        self.plug: Final = plug
        self.name: Final = name
        self.path: Final = path
        self.readonly: Final = readonly
        self.serial: Final = serial
        self.is_direct: Final = is_direct
        self.discard: Final = discard
        self.ephemeral: Final = ephemeral
        self.queues: Final = queues


def read(reader: TableReader, config: Config) -> tuple[DiskDevice, ...]:
    places = reader.several("disk", DISKS_MAX)
    return tuple(_read_one(reader, where, f"disk{number}", config) for number, where in enumerate(places))


def _read_one(reader: TableReader, where: str, default_name: str, config: Config) -> DiskDevice:
    name = read_device_name(reader, where, default_name)
    image_format = reader.choice(where, "format", ("raw", "qcow2"), "")
    if not image_format:
        reader.refuse(where, "format", '"raw" or "qcow2": it is never guessed')
    readonly = reader.boolean(where, "readonly", False)
    is_direct = reader.choice(where, "cache", ("writeback", "direct"), "writeback") == "direct"
    ephemeral = reader.boolean(where, "ephemeral", False)
    if ephemeral and readonly:
        reader.refuse(where, "ephemeral", "false with readonly, for then nothing is written")
    if ephemeral and is_direct:
        reader.refuse(where, "cache", '"writeback" with ephemeral, for nothing that is written is kept')
    if image_format == "qcow2":
        _check_qcow2(reader, where, name, config, ephemeral=ephemeral)
    return DiskDevice(
        name,
        reader.required_file(where, "path"),
        readonly=readonly,
        serial=_serial(reader, where, name),
        is_direct=is_direct,
        discard=reader.boolean(where, "discard", True),
        ephemeral=ephemeral,
        queues=reader.integer(where, "queues", 0, QUEUES_MAX, 0) or min(config.cpus.max, QUEUES_MAX),
        plug=QCOW2_PLUG if image_format == "qcow2" else PLUG,
    )


def _check_qcow2(reader: TableReader, where: str, name: str, config: Config, *, ephemeral: bool) -> None:
    """What another process serves, it serves in its own way, and in memory that it shares with the guest."""
    if reader.text(where, "serial", ""):
        reader.refuse(where, "serial", 'none with format = "qcow2": qemu-storage-daemon gives each disk the same')
    if ephemeral:
        reader.refuse(where, "ephemeral", 'false with format = "qcow2"')
    check_shared(reader, config.memory, f'for the disk {name} is "qcow2": another process maps the memory')
    if len(config.name) + len(name) > QCOW2_NAMES_MAX:
        reader.refuse(
            where, "name", f"at most {QCOW2_NAMES_MAX - len(config.name)} letters: with the VM's they are the path of a socket"
        )


def _serial(reader: TableReader, where: str, name: str) -> str:
    """By default the name, where that is not too long: the guest has the disk as /dev/disk/by-id/virtio-SERIAL."""
    serial = reader.text(where, "serial", name if len(name) <= SERIAL_MAX_BYTES else "")
    if len(serial) > SERIAL_MAX_BYTES or not serial.isascii() or not serial.isprintable():
        reader.refuse(where, "serial", f"at most {SERIAL_MAX_BYTES} printable ASCII characters")
    return serial


def check_files(device: DiskDevice, path: str) -> None:
    if device.plug == QCOW2_PLUG:
        from vmservice.host.qcow2 import check_qcow2

        check_qcow2(device.path, f"{path}: disk {device.name}")
        return
    from vmservice.host.storage import check_image

    check_image(device.path, f"{path}: disk {device.name}", writable=not (device.readonly or device.ephemeral))
