"""`vmservice disk-daemon NAME:DEVICE [--user]`: what vm-disk@NAME:DEVICE.service runs, which becomes qemu-storage-daemon.

The image and how it is used are in the VM's configuration; the listening socket is descriptor 3, from systemd.
"""

from __future__ import annotations

import json
import os
import stat

from vmservice.config.load import load_config
from vmservice.config.names import config_path
from vmservice.errors import ConfigError, HostError, UsageError
from vmservice.plug import qcow2_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.config.sections.disk import DiskDevice

_LISTENER = 3


def main(words: Sequence[str]) -> int:
    names = [word for word in words if word != "--user"]
    if len(names) != 1 or len(words) - len(names) > 1 or ":" not in names[0]:
        raise UsageError("usage: vmservice disk-daemon NAME:DEVICE [--user]")
    name, _, device = names[0].partition(":")
    path = config_path(name, user="--user" in words)
    config = load_config(name, path)
    disk = next((one for one in config.devices if one.name == device and one.plug == qcow2_disk.__name__), None)
    if disk is None:
        raise ConfigError(f'{path}: there is no [[disk]] called {device} with format = "qcow2"')
    if os.environ.get("LISTEN_FDS") != "1":
        raise HostError("the socket of the disk is missing: systemd passes it, as vm-disk@.socket says")
    qcow2_disk.check_daemon(device)
    command = daemon_command(disk)  # type: ignore[arg-type]
    os.execv(command[0], command)


def daemon_command(disk: DiskDevice) -> list[str]:
    """qemu-storage-daemon's command line for one disk."""
    access: dict[str, object] = {
        "read-only": disk.readonly,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": disk.is_direct},
    }
    is_device = stat.S_ISBLK(os.stat(disk.path).st_mode)
    file = {"driver": "host_device" if is_device else "file", "node-name": "file", "filename": disk.path, "aio": "threads"}
    image = {"driver": "qcow2", "node-name": "image", "file": "file"}
    export = f"type=vhost-user-blk,id=disk,node-name=image,addr.type=fd,addr.str={_LISTENER}"
    export += f",writable={'off' if disk.readonly else 'on'},num-queues={disk.queues}"
    return [
        qcow2_disk.DAEMON,
        *("--blockdev", json.dumps({**file, **access})),
        *("--blockdev", json.dumps({**image, **access})),
        *("--export", export),
    ]
