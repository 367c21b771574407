#!/bin/busybox sh
# The /init of the lab's own host: loads what the root disk needs and hands over to systemd.
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
/bin/busybox mount -t ext4 "/dev/${disk%/serial}" /root
exec /bin/busybox switch_root /root /usr/lib/systemd/systemd
