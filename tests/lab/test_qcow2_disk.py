"""A real Linux on a disk in qcow2, which qemu-storage-daemon of Debian 13 serves."""

from __future__ import annotations

from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.prepare import guest_config, guest_with_script
from support.unit_vm import UnitVm

# Written, read back past the page cache, and then written without end.
_SCRIPT = """\
queue=/sys/block/vda/queue
say "$(cat /sys/block/vda/size) sectors, $(cat $queue/write_cache), $(ls /sys/block/vda/mq | wc -l) queues"
say "the last sector says '$(dd if=/dev/vda bs=512 skip=131071 2> /dev/null | tr -d '\\0')'"
echo been here | dd of=/dev/vda bs=512 seek=131071 conv=fsync,sync 2> /dev/null
dd if=/dev/urandom of=/data bs=64k count=64 2> /dev/null
dd if=/data of=/dev/vda bs=64k conv=fsync 2> /dev/null
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k count=64 2> /dev/null | cmp - /data && say "the same comes back"
round=0
while :; do
    round=$((round + 1))
    dd if=/data of=/dev/vda bs=4k count=16 conv=fsync 2> /dev/null && say "round $round"
    sleep 0.2
done
"""


def test_a_real_linux_uses_it_and_outlives_its_daemon(vm: UnitVm) -> None:
    host, folder = vm.host, f"/var/lib/vmservice/{vm.name}"
    host.run(
        f"install -d -o vmservice -m 700 {folder} && qemu-img create -q -f qcow2 {folder}/disk.qcow2 64M"
        f" && chown vmservice: {folder}/disk.qcow2",
        check=True,
    )
    disk = f'[[disk]]\nname = "root"\nformat = "qcow2"\npath = "{folder}/disk.qcow2"\n'
    vm.configure(guest_config(initramfs=guest_with_script(vm, "trixie", _SCRIPT, "virtio_blk"), cpus=2, more=disk))
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
