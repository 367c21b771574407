"""What a host of the lab holds besides Debian: the package of this checkout, installed, and configurations of guests."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lab.cpio import CpioArchive
from lab.guest import bookworm_kernel, guest_images
from lab.host import LabHost, nested_kvm
from lab.kernel import KernelPackage
from lab.root_tree import RELEASES, root_tree
from support.package import INSTALLED_FROM, debian_package
from support.unit_vm import UnitVm

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
        "svm_faults.py": Path(__file__).with_name("svm_faults.py"),
    }


def install(host: LabHost) -> None:
    """Installs the package as an operator would, and does what `check-host` says of huge pages: a guest is up in a sixth less
    time. Where KVM is emulated, the host notes what its emulator does to guests."""
    host.run(f"apt-get install -y -qq {INSTALLED_FROM}", timeout=180, check=True)
    host.run("echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled", check=True)
    if not nested_kvm():
        host.run("python3 /lab/svm_faults.py arm", check=True)


def guest_with_script(vm: UnitVm, release: str, script: str, *modules: str) -> str:
    """An initramfs of the guest of `release`, whose /init loads `modules` too and then runs `script`; the path in the host."""
    kernel = KernelPackage(root_tree() if release == RELEASES[0] else bookworm_kernel())
    archive = CpioArchive()
    for index, (name, data) in enumerate(kernel.modules(*modules)):
        archive.add_file(f"modules/90-{index}-{name}", data)  # behind those of the guest
    archive.add_file("test.sh", script.encode(), 0o644)
    place = f"/srv/{vm.name}.initramfs"
    with tempfile.NamedTemporaryFile() as file:
        archive.write(Path(file.name))
        vm.host.run(f"(cat /lab/{release}.initramfs; cat) > {place}", stdin=file.read(), check=True)
    return place


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
    # A bzImage takes some seconds more here, to unpack itself.
    kernel = kernel or f"/lab/{release}.vmlinux"
    initramfs = initramfs or f"/lab/{release}.initramfs"
    return (
        f'[kernel]\npath = "{kernel}"\ninitramfs = "{initramfs}"\ncmdline = "{cmdline}"\n\n'
        f"[cpus]\nboot = {cpus}\nmax = {max_cpus or cpus}\n\n"
        f'[memory]\nsize = "{memory}"\n{memory_keys}\n'
        f"[service]\n{service}\n{more}"
    )
