"""Ordinary Debian root disks as guests."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

from lab.channel import HostDied
from lab.debian_networks import IN_BRIDGE, OWN_TAP, check_client, check_networks, host_networks, start_client, start_peer
from lab.disk_guest import BOOT_TIMEOUT_SEC, DiskGuest, copy_roots, disk_table
from lab.gpt import FIRST_BYTE
from lab.guest_checks import unexplained_warnings
from lab.root_disk import ARCHIVED
from support.unit_vm import UnitVm

MIB = 1 << 20

# Of a credential: nearly all that there is room for. With more Linux would not start (see arch/x86_64/smbios.py).
# About what fits, and what systemd before 256 reads: 4,094 bytes of SMBIOS.
LARGE_BYTES = {"trixie": 41_000, "bookworm": 3_039}


@contextlib.contextmanager
def debians(guests: dict[str, UnitVm]) -> Iterator[dict[str, DiskGuest]]:
    """A VM for each release with its root disk, to be configured. Within the test, for a host that is started anew has none."""
    debians = {release: DiskGuest(vm, release) for release, vm in guests.items()}
    host = next(iter(debians.values())).host
    copy_roots(host, debians.values())
    try:
        yield debians
    finally:
        with contextlib.suppress(HostDied):
            for guest in debians.values():
                guest.remove()
            host.run("losetup --detach-all")


def as_block_device(guest: DiskGuest) -> str:
    """The guest's root disk as a block device of the host, which its unit may use; the [[disk]] for it."""
    device = guest.host.run(f"losetup --find --show {guest.root}", check=True).stdout.strip()
    drop_in = f"[Service]\nBindPaths={device}\nDeviceAllow={device} rw\nSupplementaryGroups=disk\n"
    folder = f"/run/systemd/system/{guest.vm.unit}.d"
    guest.host.run(f"mkdir -p {folder}; cat > {folder}/disk.conf; systemctl daemon-reload", stdin=drop_in.encode(), check=True)
    return disk_table("root", device)


def over_qcow2(guest: DiskGuest) -> str:
    """An image in qcow2 over the guest's root disk, which stays as it is; the [[disk]] for it."""
    image = f"{guest.directory}/root.qcow2"
    guest.host.run(f"qemu-img create -q -f qcow2 -b {guest.root} -F raw {image} && chown vmservice: {image}", check=True)
    return f'[[disk]]\nname = "root"\npath = "{image}"\nformat = "qcow2"\n'


def check_qcow2(guest: DiskGuest) -> None:
    """The image is sound, and what it is over is as before; from here on that has the guest's writes."""
    guest.check_root()
    image = f"{guest.directory}/root.qcow2"
    guest.host.run(f"qemu-img check {image} && qemu-img commit -q {image}", timeout=120, check=True)


def test_a_debian_from_boot_to_power_off(guests: dict[str, UnitVm]) -> None:
    """Debian 13 from qcow2 with its own initramfs and four vCPUs, Debian 12 from a block device with one.

    Both have credentials and networks, and the first says itself when it is ready.
    """
    cpus = {"trixie": 4, "bookworm": 1}
    with debians(guests) as booted, host_networks(booted["trixie"].host):
        for release, guest in booted.items():
            root = over_qcow2(guest) if release == "trixie" else as_block_device(guest)
            data = disk_table("data", guest.add_disk("data", "64M"))
            initramfs = "initrd" if release == "trixie" else "quick"
            more = IN_BRIDGE + credentials(guest)
            ready = ""
            if release == "trixie":
                more += f'"ssh.authorized_keys.root" = "{ssh_key(guest)}"\n[vsock]\n' + OWN_TAP
                ready = 'ready = "guest"\nready_timeout = 900'
            guest.configure(root + data + more, cpus=cpus[release], initramfs=initramfs, service=ready)
            guest.host.run(f"systemctl start --no-block {guest.vm.unit}", check=True)
            # What is started before the VMM has 90 seconds, which the boot of the other guest would use up here.
            guest.vm.wait_for("VM started", BOOT_TIMEOUT_SEC)
        start_client(booted["trixie"].vm)
        for release, guest in booted.items():
            assert unexplained_warnings(guest.wait_up()) == []
            if release == "bookworm":
                start_peer(guest.vm)
            _use(guest, cpus[release])
            check_identity(guest)
            if release == "trixie":
                check_readiness(guest.vm)
                check_client(guest.vm)
                check_ssh(guest.vm)
        check_networks(booted)
        for release, guest in booted.items():
            guest.vm.stop()
            assert guest.vm.show("Result") == "success"
            assert "forced" not in guest.vm.journal()
            if release == "trixie":
                check_qcow2(guest)
            guest.check_root()
            guest.check_file_system(f"{guest.directory}/data.raw")
            kept = f"debugfs '{guest.root}?offset={FIRST_BYTE}' -R 'cat /srv/kept'"
            assert guest.host.run(kept, check=True).stdout == "kept\n"


def credentials(guest: DiskGuest) -> str:
    """A small one and a large one, which is a file; the section for them."""
    path = f"{guest.directory}/large"
    size = LARGE_BYTES[guest.release]
    guest.host.run(f"head -c {size} /dev/urandom > {path} && chown vmservice: {path} && chmod 400 {path}", check=True)
    return f'[credentials]\n"lab.greeting" = "hello {guest.release}"\nlarge = {{ file = "{path}" }}\n'


def ssh_key(guest: DiskGuest) -> str:
    """The public key of the host's root, who takes a guest's key when it is first seen."""
    script = (
        "mkdir -p -m 700 ~/.ssh; echo 'StrictHostKeyChecking accept-new' > ~/.ssh/config;"
        " [ -e ~/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519; cat ~/.ssh/id_ed25519.pub"
    )
    return guest.host.run(script, check=True).stdout.strip()


def check_ssh(vm: UnitVm) -> None:
    """By vsock and systemd-ssh-proxy, with the key that came as a credential; the exit status is the command's."""
    shown = vm.host.run(f"vmservice ssh root@{vm.name} 'hostname; exit 7' 2> /tmp/ssh", timeout=180)
    assert (shown.returncode, shown.stdout) == (7, "trixie\n"), vm.host.run("cat /tmp/ssh").stdout


def check_identity(guest: DiskGuest) -> None:
    """The guest has the UUID that follows from its host and its name, and what its host has told it."""
    host = uuid.UUID(guest.host.run("cat /etc/machine-id", check=True).stdout.strip())
    digest = guest.host.run(f"sha256sum < {guest.directory}/large", check=True).stdout.split()[0]
    shown = guest.type(
        "cat /sys/class/dmi/id/product_uuid",
        "cat /sys/class/dmi/id/sys_vendor",
        "systemd-detect-virt",
        "cat /run/credentials/@system/lab.greeting; echo",
        "sha256sum < /run/credentials/@system/large",
    )
    for line in (str(uuid.uuid5(host, guest.vm.name)), "vmservice", "kvm", f"hello {guest.release}", f"{digest}  -"):
        assert f"\n{line}\n" in shown, shown


def check_readiness(vm: UnitVm) -> None:
    """The guest's systemd, which has started all that it was to start, has said so."""
    vm.host.run(f"timeout 300 systemctl start {vm.unit}", timeout=330, check=True)
    assert vm.get("GuestReady") is True
    said = vm.journal()
    assert "the guest is ready" in said
    assert "the guest says X_SYSTEMD_UNIT_ACTIVE=multi-user.target" in said
    assert "; guest: " in vm.show("StatusText")
    assert vm.journal("--output=cat", "X_SYSTEMD_UNIT_ACTIVE=multi-user.target") != ""
    cid = next(details["cid"]["data"] for kind, _, details in vm.get("Devices") if kind == "vsock")
    registered = "--property=VSockCID --property=SSHAddress --property=Leader"
    shown = vm.host.run(f"machinectl show {registered} {vm.name}", check=True).stdout.split()
    assert sorted(shown) == [f"Leader={vm.main_pid()}", f"SSHAddress=vsock/{cid}", f"VSockCID={cid}"]


def _use(guest: DiskGuest, cpus: int) -> None:
    """Looks around in the guest, installs a package, and uses a second disk, which is trimmed and grows."""
    shown = guest.type(
        "systemctl is-system-running --wait",
        "systemd-analyze",
        "findmnt -no SOURCE /",
        "readlink /dev/disk/by-id/virtio-data",
        "nproc",
        "echo kept > /srv/kept",
        f"apt-get update -qq && apt-get install -y -qq {ARCHIVED} > /tmp/apt 2>&1 || cat /tmp/apt",
        ARCHIVED,
        "mkfs.ext4 -q /dev/disk/by-id/virtio-data && mount /dev/disk/by-id/virtio-data /mnt",
        f"yes | head -c {24 * MIB} > /mnt/rubbish && sync",
    )
    for line in ("running", "/dev/vda1", "../../vdb", str(cpus), "Hello, world!"):
        assert f"\n{line}\n" in shown, shown
    assert "Startup finished in" in shown

    image = f"{guest.directory}/data.raw"
    full = _occupied(guest, image)
    guest.type("rm /mnt/rubbish && sync && fstrim -v /mnt && umount /mnt")
    assert full - _occupied(guest, image) > 20 * MIB

    guest.host.run(f"truncate --size=96M {image}; systemctl reload {guest.vm.unit}", timeout=120, check=True)
    guest.type(f"timeout 120 sh -c 'until [ $(blockdev --getsize64 /dev/vdb) = {96 * MIB} ]; do sleep 0.5; done'")


def _occupied(guest: DiskGuest, image: str) -> int:
    """The bytes that an image takes of the host."""
    return int(guest.host.run(f"stat --format=%b {image}", check=True).stdout) * 512
