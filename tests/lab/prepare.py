"""What a host of the lab holds besides Debian: the package of this checkout, installed, and configurations of guests."""

from __future__ import annotations

from pathlib import Path

from lab.guest import guest_images
from lab.host import LabHost
from lab.root_tree import RELEASES
from support.package import INSTALLED_FROM, debian_package

_SUPPORT = Path(__file__).parents[1] / "support"


def payload() -> dict[str, Path]:
    """The files of /lab: guests, the package, and what tests run there."""
    return {
        **{image.name: image for image in guest_images().iterdir()},
        "vmservice.deb": debian_package(),
        "journal_wait.py": _SUPPORT / "journal_wait.py",
        "person.py": Path(__file__).with_name("person.py"),
        "masked.py": Path(__file__).with_name("masked.py"),
        "typist.py": Path(__file__).with_name("typist.py"),
        "restored.py": Path(__file__).with_name("restored.py"),
        "vsock_host.py": Path(__file__).with_name("vsock_host.py"),
    }


def install(host: LabHost) -> None:
    """Installs the package as an operator would."""
    host.run(f"apt-get install -y -qq {INSTALLED_FROM}", timeout=180, check=True)


def guest_config(
    *,
    release: str = RELEASES[0],
    kernel: str = "",
    initramfs: str = "",
    cpus: int = 1,
    max_cpus: int = 0,
    memory: str = "256M",
    memory_keys: str = "",
    cmdline: str = "console=ttyS0 quiet",
    service: str = "",
    more: str = "",
) -> str:
    """A VM's configuration: the guest of `release`, or with another `kernel` or `initramfs`. `max_cpus` is `cpus` unless given;
    `memory_keys` and `service` hold further lines of their sections, `more` whole sections."""
    kernel = kernel or f"/lab/{release}.vmlinuz"
    initramfs = initramfs or f"/lab/{release}.initramfs"
    return (
        f'[kernel]\npath = "{kernel}"\ninitramfs = "{initramfs}"\ncmdline = "{cmdline}"\n\n'
        f"[cpus]\nboot = {cpus}\nmax = {max_cpus or cpus}\n\n"
        f'[memory]\nsize = "{memory}"\n{memory_keys}\n'
        f"[service]\n{service}\n{more}"
    )
