"""`[cloud-init]`: a small disk without a file, virtio-blk, which is read and never written."""

from __future__ import annotations

import os

from vmservice.config.sections.cloud_init import read_user_data
from vmservice.config.sections.disk import DiskDevice
from vmservice.errors import HostError, NamingKey
from vmservice.host.files import RegularFile
from vmservice.host.machine_id import machine_id, uuid5
from vmservice.host.seed import host_name_of, meta_data, seed_image
from vmservice.host.storage import Image
from vmservice.plug.disk import DiskPlug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Plugged, Slot
    from vmservice.config.sections.cloud_init import CloudInitDevice
    from vmservice.plug.backend import Backend, Details, Host

# What is no error of its own: cloud-init wants the file.
_NO_USER_DATA = b"#cloud-config\n{}\n"
_NO_MACHINE_ID = bytes(16)
_KEYS_MAX_BYTES = 1 << 20


def open(section: CloudInitDevice, host: Host) -> Image:
    return _image(seed_image(_files(section, host.vm_name)))


def build(section: CloudInitDevice, backend: Image, slot: Slot) -> Plugged:
    disk = DiskDevice(section.name, backend.path, readonly=True, serial=section.name, discard=False)
    return DiskPlug(disk, backend, slot)


def details(section: CloudInitDevice, backend: Backend) -> dict[str, Details]:
    return {section.name: {"user_data": section.user_data or ""}}


def _files(section: CloudInitDevice, vm_name: str) -> dict[str, bytes]:
    user_data = _NO_USER_DATA
    if section.user_data is not None:
        with NamingKey("cloud-init.user_data"):
            user_data = read_user_data(section.user_data)
    keys = section.keys
    if section.keys_file is not None:
        with RegularFile(section.keys_file, "file of SSH keys") as file:
            keys = file.read(_KEYS_MAX_BYTES).decode(errors="replace")
    # The same at each start, and another one for a VM with a copy of the disk.
    instance = uuid5(machine_id() or _NO_MACHINE_ID, vm_name).hex()
    return {"user-data": user_data, "meta-data": meta_data(instance, host_name_of(vm_name), keys)}


def _image(content: bytes) -> Image:
    try:
        fd = os.memfd_create("cloud-init", os.MFD_CLOEXEC)
    except OSError as error:
        raise HostError.from_os("cloud-init: cannot make a memfd", error) from error
    try:
        left = content
        while left:
            left = left[os.write(fd, left) :]
        image = Image(f"/proc/self/fd/{fd}", "cloud-init", writable=False)
    except OSError as error:
        raise HostError.from_os("cloud-init: cannot write the disk for it", error) from error
    finally:
        os.close(fd)
    image.path = "the disk of [cloud-init]"
    return image
