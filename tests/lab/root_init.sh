#!/bin/busybox sh
# The /init of the lab's own host, and of guests with a root disk: loads what the disk with serial "root" needs and hands over to
# systemd. A guest's disk is partitioned, the host's is not.
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do
    /bin/busybox insmod "$module"
done
# The disk appears in its own time, before or after the other one.
/bin/busybox mount -t sysfs sys /sys
until [ -n "$disk" ]; do
    disk=$(/bin/busybox grep -lx root /sys/block/*/serial 2> /dev/null)
    [ -n "$disk" ] || /bin/busybox usleep 20000
done
disk=${disk#/sys/block/}
disk=/dev/${disk%/serial}
until /bin/busybox mount -t ext4 "${disk}1" /root 2> /dev/null || /bin/busybox mount -t ext4 "$disk" /root 2> /dev/null; do
    /bin/busybox usleep 20000
done
exec /bin/busybox switch_root /root /usr/lib/systemd/systemd
