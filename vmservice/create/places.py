"""Where a VM's files belong, whose they are, and the list of those that `create` has made."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from dataclasses import dataclass, field

from vmservice.check.unit import account_of_unit
from vmservice.client.systemctl import systemctl_line
from vmservice.config.names import NAME_MAX_LENGTH, config_path
from vmservice.errors import ConfigError, HostError, HostFacilityMissing, NotPermitted
from vmservice.host import run_lock
from vmservice.image.tools import Account

SYSTEM_STATE = "/var/lib/vmservice"

DISK = "root.raw"
KERNEL = "vmlinuz"
INITRAMFS = "initrd.img"
USER_DATA = "user-data"
MANIFEST = "created.json"
# The kernel of the disk that the journal has been told of: `newer.py`.
TOLD = "kernel.told"

_MANIFEST_MAX_BYTES = 1 << 16
_SYSTEMCTL_SEC = 20


@dataclass(frozen=True)
class Place:
    """`folder` is the VM's state directory. `account` is who the VM runs as, None: whoever we are."""

    name: str
    user: bool
    configuration: str
    folder: str
    account: Account | None

    def systemctl(self, verb: str) -> str:
        """The command, as a person would type it."""
        return systemctl_line(verb, self.name, user=self.user)

    @property
    def words(self) -> str:
        """What stands for the VM in a command of `vmservice`, with a blank before it."""
        return f"{' --user' if self.user else ''} {self.name}"


def place_of(name: str, *, user: bool) -> Place:
    """NotPermitted where it is not ours to change, HostFacilityMissing without the account that VMs run as."""
    configuration = config_path(name, user=user)
    if user:
        state = os.environ.get("XDG_STATE_HOME", "")
        state = state if state.startswith("/") else os.path.expanduser("~/.local/state")
        return Place(name, True, configuration, f"{state}/vmservice/{name}", None)
    if os.geteuid() != 0:
        raise NotPermitted(f"{configuration} is root's: run this as root, or with --user for a VM of your own")
    return Place(name, False, configuration, f"{SYSTEM_STATE}/{name}", _account(account_of_unit(name)))


def _account(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise HostFacilityMissing(
            f"there is no account {name}, which the VM would run as; the package of vmservice makes it (systemd-sysusers)"
        ) from None
    return Account(name, entry.pw_uid, entry.pw_gid)


@dataclass
class Made:
    """What `create` has made in the state directory: plain names of files. `image` is where the disk came from, `kernel` where
    in it the VM's kernel was."""

    image: str
    files: list[str] = field(default_factory=list)
    kernel: str = ""

    def text(self) -> str:
        return json.dumps({"version": 1, "image": self.image, "kernel": self.kernel, "files": self.files}, indent=2) + "\n"


def read_made(folder: str) -> Made | None:
    """None where the VM was not made by `create`. The file is the account's, so nothing in it is taken for more than a name."""
    try:
        fd = os.open(f"{folder}/{MANIFEST}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError.from_os(f"cannot read {folder}/{MANIFEST}", error) from error
    with open(fd, "rb") as file:
        data = file.read(_MANIFEST_MAX_BYTES)
    try:
        read = json.loads(data)
        files = [str(name) for name in read["files"]]
        image, kernel = str(read["image"]), str(read.get("kernel", ""))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder}/{MANIFEST} is not what `vmservice create` wrote") from None
    return Made(image, [name for name in files if _is_file_name(name)], kernel)


def _is_file_name(name: str) -> bool:
    return "/" not in name and name.isprintable() and name not in ("", ".", "..") and len(name) <= 4 * NAME_MAX_LENGTH


def hold(place: Place, verb: str) -> int:
    """The lock that a VM has as long as it runs; HostFacilityMissing if it does, or if its unit is on the way there."""
    state = unit_word(place, "is-active")
    if state in ("active", "activating", "deactivating", "reloading"):
        raise HostFacilityMissing(f"{place.name} is {state}; stop it before you {verb} it: {place.systemctl('stop')}")
    try:
        return run_lock.hold(place.name, user=place.user)
    except HostFacilityMissing as error:
        raise HostFacilityMissing(f"{error}; stop it before you {verb} it") from None


def unit_word(place: Place, question: str) -> str:
    """What `systemctl is-active` or `is-enabled` says of the unit; empty where there is no systemd to ask."""
    line = ["systemctl", *(["--user"] if place.user else []), question, f"vm@{place.name}.service"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=_SYSTEMCTL_SEC)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
