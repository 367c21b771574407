"""What a guest was told is on its disk is there after its VMM, or its host, was gone from one moment to the next."""

from __future__ import annotations

import os
import random
import re

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.host import LabHost
from lab.prepare import guest_config, install, payload
from support.unit_vm import UnitVm

# One through the host's page cache, one past it.
CACHES = {"trixie": "writeback", "bookworm": "direct"}
# A round takes half a minute and more; VMSERVICE_KILLS asks for more of them.
KILLS = int(os.environ.get("VMSERVICE_KILLS", "2"))

# In a copy, for the guest is to find the image as it is: the journal is replayed, the file system is sound, and what its files
# hold from the first record on is counted.
_COUNT = """\
cp --sparse=always {image} {copy} && {{ e2fsck -y -E journal_only {copy} >&2 || [ $? = 1 ]; }} && e2fsck -fn {copy} >&2 &&
mkdir {copy}.files && debugfs {copy} -R 'rdump / {copy}.files' >&2 &&
cat {copy}.files/[0-9]* | awk 'length != 511 || $1 != NR - 1 {{ exit }} {{ whole = NR }} END {{ print whole + 0 }}'
status=$?; rm -rf {copy} {copy}.files; exit $status
"""


class Writer:
    """A guest that writes records, flushes them and says so; and the last that it has said that of."""

    def __init__(self, release: str, vm: UnitVm) -> None:
        """With an image in the VM's folder that is made unless it is there."""
        folder = f"/var/lib/vmservice/{vm.name}"
        self.vm = vm
        self.image = f"{folder}/data.raw"
        self.flushed = -1
        make = f"mke2fs -q -t ext4 {self.image} 32M && chown vmservice: {self.image}"
        vm.host.run(f"install -d -o vmservice -g vmservice -m 700 {folder} && {make}", check=True)
        initramfs = f"/srv/{release}-writer.initramfs"
        vm.host.run(f"cat /lab/{release}.initramfs /lab/{release}-storage.initramfs > {initramfs}", check=True)
        disk = f'[[disk]]\npath = "{self.image}"\nformat = "raw"\ncache = "{CACHES[release]}"\n'
        cmdline = "console=ttyS0 quiet vmtest=flush"
        vm.configure(guest_config(release=release, initramfs=initramfs, cmdline=cmdline, more=disk))

    def wait_for_writes(self) -> None:
        """It has found all that it had flushed before, and has written on."""
        found = int(re.findall(r"whole records: (\d+)$", self.vm.wait_for(r"whole records: \d+$", BOOT_TIMEOUT_SEC))[-1])
        assert found > self.flushed
        self.vm.wait_for(f"flushed {found + 5}$")

    def note_flushed(self) -> None:
        self.flushed = max(map(int, re.findall(r"flushed (\d+)$", self.vm.journal(), re.MULTILINE)))

    def check_image(self) -> None:
        """All that was flushed is there."""
        copy = f"/var/tmp/{self.vm.name}"
        counted = self.vm.host.run(_COUNT.format(image=self.image, copy=copy), check=True)
        assert int(counted.stdout) > self.flushed, counted


def kill(writer: Writer) -> None:
    """The VMM, at a random moment; its unit would start it anew."""
    unit = writer.vm.unit
    writer.vm.host.run(
        f"sleep {random.uniform(0, 1)}; systemctl kill --kill-whom=main --signal=KILL {unit} && systemctl stop {unit} &&"
        f" systemctl reset-failed {unit}; journalctl --sync",
        check=True,
    )


@pytest.mark.timeout(1800 + 120 * KILLS)
def test_what_was_flushed_outlives_a_killed_vmm(guests: dict[str, UnitVm]) -> None:
    """The second guest finds what the first had flushed, and so does the host."""
    writers = [Writer(release, vm) for release, vm in guests.items()]
    for _ in range(KILLS):
        for writer in writers:
            writer.vm.start()
        for writer in writers:
            writer.wait_for_writes()
            kill(writer)
            writer.note_flushed()
            writer.check_image()


def test_what_was_flushed_outlives_a_killed_host(lab: LabHost) -> None:
    """On a disk of the host's that its next start finds again. Whatever the host has not written to it by then is lost."""
    device = "/dev/disk/by-id/virtio-kept"
    lab.run(f"mke2fs -q -F -t ext4 {device}", check=True)
    mount = f"mount --mkdir {device} /kept"
    lab.run(mount, check=True)
    writers = []
    for release, cache in CACHES.items():
        vm = UnitVm(lab, f"kept-{cache}")
        lab.run(f"mkdir /kept/{cache} && mount --mkdir --bind /kept/{cache} /var/lib/vmservice/{vm.name}", check=True)
        writers.append(Writer(release, vm))
    lab.run("sync", check=True)
    for writer in writers:
        writer.vm.start()
    for writer in writers:
        writer.wait_for_writes()
        writer.note_flushed()

    lab.stop()
    lab.start(payload())
    install(lab)
    lab.run(mount, check=True)
    for writer, cache in zip(writers, CACHES.values(), strict=True):
        writer.image = f"/kept/{cache}/data.raw"
        writer.check_image()
    lab.run("umount /kept", check=True)
