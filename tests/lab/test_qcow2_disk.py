"""A real Linux on a disk in qcow2, which qemu-storage-daemon of Debian 13 serves."""

from __future__ import annotations

from pathlib import Path

from lab.cpio import CpioArchive
from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.kernel import KernelPackage
from lab.prepare import guest_config
from lab.root_tree import root_tree
from support.unit_vm import UnitVm

# Written, read back past the page cache, and then written without end.
_INIT = b"""\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin
for module in /modules/*.ko; do
    insmod "$module"
done
queue=/sys/block/vda/queue
echo "vmservice guest: $(cat /sys/block/vda/size) sectors, $(cat $queue/write_cache), $(ls /sys/block/vda/mq | wc -l) queues"
echo "vmservice guest: the last sector says '$(dd if=/dev/vda bs=512 skip=131071 2> /dev/null | tr -d '\\0')'"
echo been here | dd of=/dev/vda bs=512 seek=131071 conv=fsync,sync 2> /dev/null
dd if=/dev/urandom of=/data bs=64k count=64 2> /dev/null
dd if=/data of=/dev/vda bs=64k conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k count=64 2> /dev/null | cmp - /data && echo "vmservice guest: the same comes back"
round=0
while :; do
    round=$((round + 1))
    dd if=/data of=/dev/vda bs=4k count=16 conv=fsync 2> /dev/null && echo "vmservice guest: round $round"
    sleep 0.2
done
"""


def test_a_real_linux_uses_it_and_outlives_its_daemon(vm: UnitVm, tmp_path: Path) -> None:
    host, folder = vm.host, f"/var/lib/vmservice/{vm.name}"
    archive = CpioArchive()
    for index, (name, data) in enumerate(KernelPackage(root_tree()).modules("virtio_blk")):
        archive.add_file(f"modules/90-{index}-{name}", data)
    archive.add_file("init", _INIT, 0o755)
    archive.write(tmp_path / "more")
    host.run(f"install -d -o vmservice -m 700 {folder} && qemu-img create -q -f qcow2 {folder}/disk.qcow2 64M", check=True)
    host.run(f"(cat /lab/trixie.initramfs; cat) > {folder}/initramfs", stdin=(tmp_path / "more").read_bytes(), check=True)
    host.run(f"chown vmservice: {folder}/*", check=True)
    disk = f'[[disk]]\nname = "root"\nformat = "qcow2"\npath = "{folder}/disk.qcow2"\n'
    vm.configure(guest_config(initramfs=f"{folder}/initramfs", cpus=2, more=disk))
    vm.start()
    seen = vm.wait_for("round 3$", BOOT_TIMEOUT_SEC)
    assert "vmservice guest: 131072 sectors, write back, 2 queues" in seen
    assert "vmservice guest: the last sector says ''" in seen
    assert "vmservice guest: the same comes back" in seen
    vm.call("Pause")
    vm.call("Resume")
    vm.wait_for("round 8$")

    host.run(f"systemctl kill --signal=KILL vm-disk@{vm.name}:root.service", check=True)
    vm.wait_for("cannot be served until its next reset: the qemu-storage-daemon of the disk root has ended")
    assert vm.state == "running"
    vm.call("Reboot")
    vm.wait_for("the last sector says 'been here'", BOOT_TIMEOUT_SEC)
