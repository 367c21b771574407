"""The configuration of a new VM, as a person would write it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from vmservice.create.places import DISK, INITRAMFS, KERNEL, USER_DATA, Place
from vmservice.create.ways import Network, Ways
from vmservice.image.guest import Guest

# Of the host's processors, what a VM may grow to unless it is told otherwise.
_MAX_VCPUS = 4

USER_DATA_TEXT = """\
#cloud-config
# What cloud-init in the guest does at its first start: https://docs.cloudinit.io
# It has the host name and the SSH key without a word here. root may log in with that key, as the image's own user may.
disable_root: false
"""


@dataclass(frozen=True)
class Shape:
    """`vcpus` is None where nobody has said; `memory` as it is written in the file: "1G"."""

    vcpus: int | None
    memory: str


def configuration(place: Place, guest: Guest, ways: Ways, shape: Shape, *, image: str, keys: str) -> str:
    """The text of the file."""
    sections = [
        _head(place, guest, image),
        _kernel(place, guest),
        _machine(place, shape),
        _serial(place),
        _disk(place),
        _network(place, ways),
        _vsock(ways),
        _told(place, ways, keys),
    ]
    return "\n".join(section for section in sections if section)


def toml_string(text: str) -> str:
    """A string of TOML. JSON's escapes are a part of TOML's, and what is not ASCII may be written plainly in both."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _head(place: Place, guest: Guest, image: str) -> str:
    day = time.strftime("%Y-%m-%d")
    return f"""\
# {place.name}: {guest.pretty_name}
# Made by `vmservice create` on {day} from {toml_string(image)}.
# All keys: man vmservice.toml. `vmservice edit{place.words}` checks what you change here.
"""


def _kernel(place: Place, guest: Guest) -> str:
    lines = [
        "[kernel]",
        f"# Taken out of the image. When the guest has got a new kernel: vmservice update-kernel{place.words}",
        f"path = {toml_string(f'{place.folder}/{KERNEL}')}",
    ]
    if guest.initrd:
        lines.append(f"initramfs = {toml_string(f'{place.folder}/{INITRAMFS}')}")
    lines += [
        f"# Of {_one_line(guest.source)}. root= is the partition by its id.",
        f"cmdline = {toml_string(guest.cmdline)}",
        "",
    ]
    return "\n".join(lines)


def _machine(place: Place, shape: Shape) -> str:
    boot = shape.vcpus or 1
    most = max(boot, min(_MAX_VCPUS, os.cpu_count() or 1))
    return f"""\
[cpus]
boot = {boot}
max = {most}  # `vmservice resize{place.words} N` while it runs

[memory]
size = {toml_string(shape.memory)}
"""


def _serial(place: Place) -> str:
    return f"""\
[serial]
mode = "socket"  # `vmservice console{place.words}` types at it
log = "journal"  # what the guest prints is there, too: `vmservice logs{place.words}`
"""


def _disk(place: Place) -> str:
    return f"""\
[[disk]]
name = "root"
path = {toml_string(f"{place.folder}/{DISK}")}
format = "raw"
# To make it 10 GiB larger: truncate -s +10G on that file, then {place.systemctl("reload")}
"""


def _network(place: Place, ways: Ways) -> str:
    network = ways.network
    if network.mode == "none":
        return _comment(
            'No network, as it was asked for. This is one by passt, which needs no privilege:\n[[network]]\nmode = "passt"\n'
        )
    lines = ["[[network]]", *_mode(network)]
    if ways.forward:
        lines += ["# A port of this host that leads to the guest's sshd.", f'forward = ["127.0.0.1:{ways.forward}:22/tcp"]']
    elif network.mode == "passt":
        lines.append('# forward = ["8080:80/tcp"]  # a port of this host that leads to a port of the guest')
    return "\n".join([*lines, ""])


def _mode(network: Network) -> list[str]:
    if network.mode == "passt":
        return ['mode = "passt"  # addresses by DHCP, the host\'s network behind them; no privilege needed']
    if network.mode == "bridge":
        return ['mode = "tap"', f"bridge = {toml_string(network.link)}  # a tap is made for the VM and put there"]
    if network.link:
        return ['mode = "tap"', f"tap = {toml_string(network.link)}"]
    return ['mode = "tap"  # one is made for the VM; systemd-networkd serves it: networks.md']


def _vsock(ways: Ways) -> str:
    if not ways.has_vsock:
        return ""
    return "[vsock]  # sockets between host and guest: for `vmservice ssh`, and for the guest's word that it is ready\n"


def _told(place: Place, ways: Ways, keys: str) -> str:
    parts = []
    if keys and (ways.has_credentials or ways.has_cloud_init):
        parts.append(
            "[credentials]\n# Who may log in as root by SSH. No secret: it is the public half.\n"
            f'"ssh.authorized_keys.root" = {toml_string(keys)}\n'
        )
    if ways.has_cloud_init:
        parts.append(
            "[cloud-init]\n# The host name and that key go to cloud-init, too, for its own user.\n"
            f"user_data = {toml_string(f'{place.folder}/{USER_DATA}')}\n"
        )
    if ways.ready_by_guest:
        parts.append(
            '[service]\nready = "guest"  # `systemctl start` returns when the guest has started all that it was to start\n'
        )
    return "\n".join(parts)


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
