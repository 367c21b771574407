"""`[[disk]]` with format = "qcow2": virtio-blk that qemu-storage-daemon serves, in a unit of its own."""

from __future__ import annotations

import os
import stat
import struct

from vmservice.devices.virtio.ids import TYPE_BLOCK
from vmservice.errors import HostFacilityMissing
from vmservice.host.qcow2 import check_qcow2
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.plug.external import ExternalBackend, ExternalPlug, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Plugged, Slot
    from vmservice.config.sections.disk import DiskDevice
    from vmservice.plug.backend import Backend, Details, Host

DAEMON = "/usr/bin/qemu-storage-daemon"

# What is asked for of struct virtio_blk_config (virtio 1.2 §5.2.4), as far as QEMU 7 has it.
CONFIG_BYTES = 60
_NUM_QUEUES = struct.Struct("<H")
_NUM_QUEUES_OFFSET = 34
_LIMIT = struct.Struct("<I")
_MAX_DISCARD_OFFSET = 36
_MAX_WRITE_ZEROES_OFFSET = 48

# Feature bits (virtio 1.2 §5.2.3)
SEG_MAX = 1 << 2
RO = 1 << 5
BLK_SIZE = 1 << 6
FLUSH = 1 << 9
TOPOLOGY = 1 << 10
MQ = 1 << 12
DISCARD = 1 << 13
WRITE_ZEROES = 1 << 14
# Without CONFIG_WCE: the configuration space says "write-through" of a cache that is none, and a driver that believes it never
# flushes. Without that, FLUSH alone says that there is something to flush.
_OFFERED = SEG_MAX | RO | BLK_SIZE | FLUSH | TOPOLOGY | MQ | DISCARD | WRITE_ZEROES


def open(section: DiskDevice, host: Host) -> Backend:
    check_daemon(section.name)
    check_qcow2(section.path, f"disk {section.name}")
    unit = f"vm-disk@{host.vm_name}:{section.name}"
    link = BackEndLink(
        socket_path("disk", host.vm_name, section.name),
        f"the qemu-storage-daemon of the disk {section.name}",
        CONFIG_BYTES,
        f"the journal of {unit}.service and {unit}.socket may say why",
    )
    link.open()
    return ExternalBackend(link)


def build(section: DiskDevice, backend: ExternalBackend, slot: Slot) -> Plugged:
    link = backend.link
    features = offered(link.features, link.config, readonly=section.readonly, discard=section.discard)
    # What is answered and not flushed is lost with the daemon, whose qcow2 driver keeps tables in its memory.
    is_volatile = not section.readonly
    return ExternalPlug(
        slot, link, TYPE_BLOCK, features, is_volatile=is_volatile, adapt=lambda config: adapted(config, link.queues)
    )


def details(section: DiskDevice, backend: ExternalBackend) -> dict[str, Details]:
    socket = backend.link.path
    return {section.name: {"path": section.path, "format": "qcow2", "readonly": section.readonly, "socket": socket}}


def offered(features: int, config: bytes, *, readonly: bool, discard: bool) -> int:
    """What the driver sees of the daemon's features."""
    features &= _OFFERED
    if readonly:
        features = (features | RO) & ~(DISCARD | WRITE_ZEROES)
    if not discard or not _limit(config, _MAX_DISCARD_OFFSET):
        features &= ~DISCARD
    # Windows crashes where the limits are zero.
    if not _limit(config, _MAX_WRITE_ZEROES_OFFSET):
        features &= ~WRITE_ZEROES
    return features


def adapted(config: bytes, queues: int) -> bytes:
    """The configuration space with the virtqueues that there are."""
    behind = _NUM_QUEUES_OFFSET + _NUM_QUEUES.size
    return config[:_NUM_QUEUES_OFFSET] + _NUM_QUEUES.pack(queues) + config[behind:]


def _limit(config: bytes, offset: int) -> int:
    return int(_LIMIT.unpack_from(config, offset)[0])


def check_daemon(disk: str) -> None:
    """HostFacilityMissing unless there is one."""
    if not os.access(DAEMON, os.X_OK):
        package = "Debian has it in qemu-utils, and Debian 12 in qemu-system-common"
        raise HostFacilityMissing(f"the disk {disk} is in qcow2, which takes {DAEMON}, and that is not installed; {package}")


def unit_needs(section: DiskDevice, vm_name: str) -> tuple[str, list[str]]:
    """The kind of unit that serves the disk, vm-KIND@.service, and what its sandbox has to let through.

    The image alone may be written to. A backing file is to be where every service may read, or in the VM's own folder.
    """
    image = quoted(section.path)
    lines = [f"BindReadOnlyPaths=-/var/lib/vmservice/{vm_name}"]
    if _is_block_device(section.path):
        lines += ["PrivateDevices=no", f"DeviceAllow={image} {'r' if section.readonly else 'rw'}"]
    elif not section.readonly:
        lines.append(f"ReadWritePaths=-{image}")
    return "disk", lines


def quoted(path: str) -> str:
    """A path as a word of a unit file (systemd.syntax(7), systemd.unit(5))."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{escaped}"'


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
