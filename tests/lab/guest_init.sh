#!/bin/busybox sh
# The guest's /init: says that it is there, beats once a second, and powers off when its power button is pressed.
# vmtest=NAME on the kernel's command line makes it do something else in between.

say() { echo "vmservice guest: $*"; }

# The first thing is the line that start-up is measured by.
say "/init reached"

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin

say "Linux $(uname -r), $(nproc) CPUs, $(awk '/MemTotal/ { print $2 }' /proc/meminfo) KiB"

for word in $(cat /proc/cmdline); do
    case "$word" in
        vmtest=*) vmtest=${word#vmtest=} ;;
    esac
done

case "$vmtest" in
    poweroff) poweroff -f ;;
    reboot) reboot -f ;;
    panic) echo c > /proc/sysrq-trigger ;;
    tables)
        for table in /sys/firmware/acpi/tables/[A-Z]*; do
            [ -f "$table" ] || continue
            say "table ${table##*/} $(base64 "$table" | tr -d '\n')"
        done
        say "tables end"
        poweroff -f
        ;;
    topology)
        for processor in /sys/devices/system/cpu/cpu[0-9]*; do
            cd "$processor/topology"
            caches=$(cat ../cache/index*/shared_cpu_list 2> /dev/null | tr '\n' ' ')
            say "${processor##*/} package $(cat physical_package_id) core $(cat core_id)" \
                "threads $(cat thread_siblings_list) cores $(cat core_siblings_list) caches $caches"
        done
        dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
        say "topology end"
        poweroff -f
        ;;
    busy)
        for processor in $(seq "$(nproc)"); do
            (while :; do :; done) &
        done
        ;;
esac

for module in /modules/*.ko; do
    insmod "$module"
done

# What a test has laid beside this file does the rest.
if [ -f /test.sh ]; then
    . /test.sh
fi

# A key event is 24 bytes (struct input_event): type 1 (EV_KEY) at 16, code 116 (KEY_POWER) at 18, value 1 at 20, little-endian.
watch_button() {
    while :; do
        event=$(dd if="$1" bs=24 count=1 2> /dev/null | hexdump -v -e '24/1 "%02x"')
        case "$event" in
            "") return ;;
            *0100740001000000)
                say "power button"
                poweroff -f
                ;;
        esac
    done
}
# What the guest makes of its virtio devices, and all that its kernel found worth a warning.
if [ "$vmtest" = virtio ]; then
    say "on the virtio-console" > /dev/hvc0
    for device in /sys/bus/virtio/devices/*; do
        say "$(basename "$(readlink "$device/driver")") at $(basename "$(dirname "$(readlink -f "$device")")")"
    done
    say "$(head -c 64 /dev/hwrng | wc -c) bytes from $(cat /sys/class/misc/hw_random/rng_current)"
    sleep 2
    say "$(awk '/MemFree/ { print $2 }' /proc/meminfo) KiB free with the balloon"
    dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
    [ -x /usr/bin/lspci ] && /usr/bin/lspci -vv 2>&1 | sed 's/^/vmservice guest: lspci: /'
    say "virtio end"
fi

# Persistent memory with a file system: the first is read and written past the page cache, the second is read-only.
if [ "$vmtest" = pmem ]; then
    mkdir /data /image
    say "pmem0 has $(cat /sys/block/pmem0/size), pmem1 $(cat /sys/block/pmem1/size) sectors"
    mount -t ext4 -o dax /dev/pmem0 /data
    mount -t ext4 -o ro,dax /dev/pmem1 /image
    sed -n 's/^\/dev\/pmem/vmservice guest: mounted pmem/p' /proc/mounts
    say "found $(cat /data/greeting /image/greeting | tr '\n' ' ')"
    seq 100000 > /data/numbers && sync
    umount /data /image
    echo "written by the guest" > /dev/pmem1
    sync
    say "on pmem1 $(head -n 1 /dev/pmem1)"
    dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
    say "pmem end"
fi

# Sockets of the host are served, and asked for, until the power button is pressed.
if [ "$vmtest" = vsock ]; then
    dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
    PYTHONHOME=/usr /usr/bin/python3 -SB /vsock_guest.py &
fi

# A writer of records, each its number in 512 bytes, that tells which of them it has flushed, and before how many its predecessor
# on this disk has left whole. A file holds 64, so that there is something to do for the file system, too.
if [ "$vmtest" = flush ]; then
    mkdir /data
    if mount -t ext4 /dev/vda /data; then
        number=$(cat /data/[0-9]* 2> /dev/null | awk 'length != 511 || $1 != NR - 1 { exit } { whole = NR } END { print whole + 0 }')
        say "whole records: $number"
        while printf '%511d\n' "$number" |
            dd of="/data/$(printf %06d $((number / 64)))" bs=512 seek=$((number % 64)) conv=notrunc,fsync 2> /dev/null; do
            say "flushed $number"
            number=$((number + 1))
        done &
    fi
fi

# A panic when there is a driver to tell of it.
if [ "$vmtest" = panicked ]; then
    dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
    say "panics"
    echo c > /proc/sysrq-trigger
fi

# The first boot feeds its watchdog for longer than the timeout and then leaves it; the second one tells what it finds.
if [ "$vmtest" = watchdog ]; then
    found=$(cat /sys/class/watchdog/watchdog0/bootstatus)
    say "$(cat /sys/class/watchdog/watchdog0/identity) bootstatus $found"
    rmmod wdat_wdt
    insmod /modules/*wdat_wdt.ko timeout=8
    exec 3> /dev/watchdog0
    if [ "$found" = 0 ]; then
        for second in 1 2 3 4 5 6 7 8 9 10; do
            sleep 1
            echo >&3
        done
        say "fed, timeout $(cat /sys/class/watchdog/watchdog0/timeout)"
    else
        dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
        printf V >&3
        exec 3>&-
        sleep 9
        say "watchdog $(cat /sys/class/watchdog/watchdog0/state)"
    fi
fi

# What time it is, by the kernel and by the RTC.
if [ "$vmtest" = clock ]; then
    source=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
    while sleep 1; do
        say "$source $(date +%s), RTC $(cat /sys/class/rtc/rtc0/since_epoch)"
    done &
fi

# A console of its own at /dev/hvc0: it tells how large it is whenever that changes, and repeats what is typed at it.
if [ "$vmtest" = console ]; then
    while read -r typed; do
        say "typed at hvc0: $typed"
        echo "you typed $typed" > /dev/hvc0
    done < /dev/hvc0 &
    while sleep 0.2; do
        size=$(stty size < /dev/hvc0)
        [ "$size" = "$told" ] || say "hvc0 has $size"
        told=$size
    done &
fi

for device in /dev/input/event*; do
    [ -c "$device" ] && watch_button "$device" &
done
say "ready, $(ls /dev/input 2> /dev/null | grep -c event) buttons"

# Lines typed on the console are commands.
while read -r line; do
    sh -c "$line"
done < /dev/console &

# A vCPU that has come is there, but the kernel leaves it to user space to use it. A full system has a udev rule for this:
# SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}=="0", ATTR{online}="1"
use_all_processors() {
    for switch in /sys/devices/system/cpu/cpu*/online; do
        [ -f "$switch" ] && [ "$(cat "$switch")" = 0 ] && echo 1 > "$switch"
    done
}

beat=0
processors=$(nproc)
while :; do
    beat=$((beat + 1))
    say "beat $beat"
    use_all_processors
    if [ "$(nproc)" != "$processors" ]; then
        processors=$(nproc)
        say "nproc is now $processors"
    fi
    sleep 1
done
