#!/bin/busybox sh
# /init of the bench's guest. bench=resize on the kernel's command line: uses each processor that comes and tells how many there
# are. bench=console: writes to both consoles, and tells on ttyS0 when it begins and ends. bench=network with
# link=OWN,GATEWAY,HOST,PORT: connects to that host again and again, and does there what a line tells it (guest_link.py).

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin

for module in /modules/*.ko; do
    insmod "$module"
done

# No process is started until something has changed: the emulated host is slow, and that would be measured.
resize() {
    told=
    while :; do
        for switch in /sys/devices/system/cpu/cpu[1-9]/online; do
            [ -f "$switch" ] && read -r online < "$switch" && [ "$online" = 0 ] && echo 1 > "$switch"
        done
        read -r online < /sys/devices/system/cpu/online
        if [ "$online" != "$told" ]; then
            told=$online
            echo "bench guest: nproc $(nproc)"
        fi
        sleep 0.05
    done
}

# Lines of 64 bytes; the terminal is raw, so that it adds nothing.
console() {
    yes 012345678901234567890123456789012345678901234567890123456789012 | head -c 524288 > /text
    stty raw < /dev/hvc0
    stty -opost < /dev/ttyS0
    sleep 0.5
    echo "bench guest: hvc0 begin"
    cat /text > /dev/hvc0
    echo "bench guest: hvc0 end"
    sleep 0.5
    echo "bench guest: ttyS0 begin"
    head -c 16384 /text > /dev/ttyS0
    echo
    echo "bench guest: ttyS0 end"
}

network() {
    cat > /job << 'END'
#!/bin/sh
read -r job
case "$job" in
    send) exec dd if=/dev/zero bs=64k 2> /dev/null ;;
    take) exec dd of=/dev/null bs=64k 2> /dev/null ;;
    echo) exec cat ;;
esac
END
    chmod +x /job
    ip address add "$1/24" dev eth0
    ip link set eth0 up
    ip route add default via "$2"
    while :; do
        nc "$3" "$4" -e /job
        sleep 0.05
    done
}

case "$(cat /proc/cmdline)" in
    *bench=resize*) resize 2> /dev/null ;;
    *bench=console*) console ;;
    *bench=network*) network $(sed 's/.*link=\([^ ]*\).*/\1/; s/,/ /g' /proc/cmdline) ;;
esac
while :; do
    sleep 60
done
