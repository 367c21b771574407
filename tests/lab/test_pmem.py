"""Persistent memory, as the drivers of real Linux guests find it: a file system without a page cache, kept in the file."""

from __future__ import annotations

import re

from lab.guest_checks import BOOT_TIMEOUT_SEC, unexplained_warnings
from lab.prepare import guest_config
from support.unit_vm import UnitVm

_MAKE = """\
install -d -o vmservice -g vmservice -m 700 {folder} && mkdir -p /tmp/{name} && echo hello > /tmp/{name}/greeting
for image in data.img image.img; do
    mke2fs -q -F -t ext4 -b 4096 -d /tmp/{name} {folder}/$image 64M && chown vmservice: {folder}/$image
done
chmod 400 {folder}/image.img
"""


def test_a_file_system_with_dax(guests: dict[str, UnitVm]) -> None:
    transports, before = {"trixie": "pci", "bookworm": "mmio"}, {}
    for release, vm in guests.items():
        folder = f"/var/lib/vmservice/{vm.name}"
        vm.host.run(_MAKE.format(folder=folder, name=vm.name), check=True)
        before[release] = vm.host.run(f"sha256sum {folder}/image.img", check=True).stdout
        initramfs = f"/srv/{vm.name}.initramfs"
        vm.host.run(f"cat /lab/{release}.initramfs /lab/{release}-storage.initramfs > {initramfs}", check=True)
        pmem = f'[[pmem]]\npath = "{folder}/data.img"\n[[pmem]]\npath = "{folder}/image.img"\nreadonly = true\n'
        cmdline = "console=ttyS0 quiet vmtest=pmem"
        more = f'{pmem}[virtio]\ntransport = "{transports[release]}"\n'
        vm.configure(guest_config(release=release, initramfs=initramfs, cmdline=cmdline, more=more))
        vm.start()
    for release, vm in guests.items():
        folder = f"/var/lib/vmservice/{vm.name}"
        console = vm.wait_for("pmem end", BOOT_TIMEOUT_SEC)
        assert "pmem0 has 131072, pmem1 131072 sectors" in console
        assert re.search(r"mounted pmem0 /data ext4 rw,.*dax=always", console), console
        assert re.search(r"mounted pmem1 /image ext4 ro,.*dax=always", console), console
        assert "found hello hello" in console
        assert "on pmem1 written by the guest" in console
        assert unexplained_warnings(console) == []
        assert int(vm.get("Stats")["pmem.pmem0.flushes"]) > 0
        vm.stop()
        assert vm.show("Result") == "success"
        vm.host.run(f"e2fsck -fn {folder}/data.img", check=True)
        numbers = vm.host.run(f"debugfs {folder}/data.img -R 'cat /numbers' 2> /dev/null", check=True).stdout
        assert numbers.split() == [str(number) for number in range(1, 100001)]
        assert vm.host.run(f"sha256sum {folder}/image.img", check=True).stdout == before[release]
        vm.host.run(f"rm -rf {folder} /tmp/{vm.name} /srv/{vm.name}.initramfs")
