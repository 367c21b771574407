"""Debian root disks as a VM has them, and what tests ask of one: its shell, its file systems, its images."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from lab.gpt import FIRST_BYTE
from lab.host import LabHost
from lab.prepare import guest_config
from lab.root_disk import REACHED, root_cmdline
from lab.typist import STATUS_PROMPT
from support.unit_vm import UnitVm

# A systemd that boots, emulated twice, on a processor that another one shares.
BOOT_TIMEOUT_SEC = 600
_COMMAND_TIMEOUT_SEC = 600


class DiskGuest:
    """The VM `vm`, which boots the root disk of `release` in the folder that is the VM's own. `copy_roots` comes first."""

    def __init__(self, vm: UnitVm, release: str) -> None:
        self.vm = vm
        self.release = release
        self.directory = f"/var/lib/vmservice/{vm.name}"
        self.root = f"{self.directory}/root.raw"

    @property
    def host(self) -> LabHost:
        assert isinstance(self.vm.host, LabHost)
        return self.vm.host

    def add_disk(self, name: str, size: str, content: bytes = b"") -> str:
        """An image of that size in the VM's folder; its path."""
        path = f"{self.directory}/{name}.raw"
        self.host.run(f"cat > {path} && truncate --size={size} {path} && chown vmservice: {path}", stdin=content, check=True)
        return path

    def configure(self, disks: str, *, cpus: int = 1, initramfs: str = "initrd", service: str = "") -> None:
        """`disks` holds the [[disk]] tables, and other sections; `service` lines of that one.

        The serial console is in the journal; a shell is at the console hvc0. `initramfs` is "initrd" or "quick".
        """
        self.vm.configure(
            guest_config(
                kernel=f"/disks/{self.release}.vmlinuz",
                initramfs=f"/disks/{self.release}.{initramfs}",
                cmdline=root_cmdline(self.release),
                cpus=cpus,
                memory="384M",
                service=service,
                more=f'[console]\nmode = "pty"\n{disks}',
            )
        )

    def wait_up(self) -> str:
        """Until multi-user.target is reached; the console up to there."""
        return self.vm.wait_for(REACHED, BOOT_TIMEOUT_SEC)

    def type(self, *commands: str, timeout: float = _COMMAND_TIMEOUT_SEC) -> str:
        """What the guest's console shows when a person types `commands`, all of which succeed."""
        line = shlex.join(["python3", "/lab/typist.py", self.vm.name, str(timeout), STATUS_PROMPT, *commands])
        done = self.host.run(line, timeout=timeout + 30)
        assert done.returncode == 0, f"at {self.vm.name}:\n{done.stdout}{done.stderr}{self.vm.journal()[-3000:]}"
        return done.stdout

    def check_root(self) -> None:
        """The root file system of a guest that is down is clean, without a journal to replay."""
        self.check_file_system(f"{self.root}?offset={FIRST_BYTE}")

    def check_file_system(self, image: str) -> None:
        checked = self.host.run(f"e2fsck -fn '{image}'", timeout=120)
        assert checked.returncode == 0, checked
        assert "recovering journal" not in checked.stdout + checked.stderr

    def remove(self) -> None:
        self.vm.remove()
        self.host.run(f"rm -rf {self.directory}")


def copy_roots(host: LabHost, guests: Iterable[DiskGuest]) -> None:
    """Each guest's folder, with its own copy of the root disk."""
    script = "".join(
        f"(install -d -o vmservice -g vmservice -m 700 {guest.directory} &&"
        f" cp --sparse=always /disks/{guest.release}.raw {guest.root} && chown vmservice: {guest.root}) & "
        for guest in guests
    )
    host.run(f"{script} wait", timeout=180, check=True)


def disk_table(name: str, path: str, **keys: str) -> str:
    """One [[disk]], raw unless `keys` say otherwise; its serial is its name. Values of `keys` are TOML."""
    values = {"name": f'"{name}"', "path": f'"{path}"', "format": '"raw"', "serial": f'"{name}"'} | keys
    return "[[disk]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
