"""How a new VM is reached, and what its guest is told: that follows from the guest, the host and the options."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from vmservice.errors import HostFacilityMissing, UsageError
from vmservice.image.guest import Guest
from vmservice.image.tools import is_there

_VHOST_VSOCK = "/dev/vhost-vsock"
# What `vmservice ssh` takes to get to a vsock: systemd-ssh-proxy(1), or socat.
_SSH_PROXY = "/usr/lib/systemd/systemd-ssh-proxy"
# ssh.authorized_keys.root is a credential that tmpfiles.d has used since, and sshd listens at a vsock since.
_SYSTEMD_CREDENTIALS = 252
_SYSTEMD_VSOCK_SSH = 256
_FIRST_PORT = 2222
_PORTS = 200

# Whom cloud images let in besides root, by the ID of os-release.
_CLOUD_USERS = {
    **{name: name for name in ("debian", "ubuntu", "fedora", "rocky", "arch", "alpine")},
    "centos": "cloud-user",
    "almalinux": "almalinux",
    "rhel": "cloud-user",
    "opensuse-leap": "opensuse",
    "sles": "sles",
}


@dataclass(frozen=True)
class Network:
    """`mode` is passt, tap, bridge or none; `link` is the tap's name or the bridge's."""

    mode: str
    link: str = ""


@dataclass(frozen=True)
class Ways:
    """`forward` is the port of the host that leads to the guest's sshd, 0 without. `login` is who ssh is to be."""

    network: Network
    has_vsock: bool
    ready_by_guest: bool
    forward: int
    has_credentials: bool
    has_cloud_init: bool
    login: str


def read_network(text: str | None, *, user: bool) -> Network:
    """`--network`: passt, tap, tap=NAME, bridge=NAME or none. Without it passt, where that is installed."""
    if text is None:
        if is_there("passt"):
            return Network("passt")
        return Network("none" if user else "tap")
    found = re.fullmatch(r"(passt|none|tap)|(tap|bridge)=([^\s/:]{1,15})", text)
    if found is None:
        raise UsageError(f"--network {text} is none of passt, tap, tap=NAME, bridge=NAME and none")
    if found[1] == "passt" and not is_there("passt"):
        raise HostFacilityMissing("--network passt: passt is not installed; Debian has it in the package passt")
    if found[1]:
        return Network(found[1])
    return Network(found[2], found[3])


def ways_to(guest: Guest, network: Network, *, has_key: bool, folder: str, user: bool) -> Ways:
    """`folder` has the other VMs' configurations: their forwarded ports are not free."""
    # The account of the system's VMs is in the group that may open it.
    can_open = os.access(_VHOST_VSOCK, os.R_OK | os.W_OK) if user else os.path.exists(_VHOST_VSOCK)
    has_vsock = guest.systemd >= _SYSTEMD_VSOCK_SSH and can_open
    by_vsock = has_vsock and guest.has_sshd and (os.access(_SSH_PROXY, os.X_OK) or is_there("socat"))
    has_credentials = has_key and guest.systemd >= _SYSTEMD_CREDENTIALS
    return Ways(
        network=network,
        has_vsock=has_vsock,
        ready_by_guest=has_vsock,
        forward=0 if by_vsock or network.mode != "passt" else _free_port(folder),
        has_credentials=has_credentials,
        has_cloud_init=guest.has_cloud_init,
        login="root" if has_credentials or not guest.has_cloud_init else _CLOUD_USERS.get(guest.os_id, "root"),
    )


def _free_port(folder: str) -> int:
    taken = _taken_ports(folder)
    for port in range(_FIRST_PORT, _FIRST_PORT + _PORTS):
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    return _FIRST_PORT


def _taken_ports(folder: str) -> set[int]:
    """Those that other configurations forward to a guest's sshd, also of VMs that do not run."""
    found: set[int] = set()
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".toml")]
    except OSError:
        return found
    for name in names:
        try:
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                text = file.read(1 << 20)
        except OSError:
            continue
        found |= {int(port) for port in re.findall(r"(\d{1,5}):22\b", text)}
    return found
