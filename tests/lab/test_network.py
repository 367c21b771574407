"""Real Linux guests at taps: an address from the host's systemd-networkd, a bridge, TCP both ways over pauses and a reload.

Debian 13 has its frames moved by the kernel (vhost-net), over PCI; Debian 12 by the VMM, over MMIO.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lab.channel import HostDied
from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.host import LabHost
from lab.prepare import guest_config, guest_with_script
from lab.root_tree import RELEASES
from support.unit_vm import UnitVm

BRIDGE_ADDRESS, BRIDGED_GUEST = "10.98.0.1", "10.98.0.2"
_HOST = f"""\
set -e
modprobe -a tun vhost_net bridge
systemctl start systemd-networkd
ip link add br-lab type bridge
ip address add {BRIDGE_ADDRESS}/24 dev br-lab
ip link set br-lab up
mkdir -p /srv/net
head -c 300000 /dev/urandom > /srv/net/data
systemd-run --quiet --unit=net-server --service-type=exec python3 -m http.server --directory /srv/net 8000
timeout 20 sh -c 'until ss -lt | grep --quiet 8000; do sleep 0.1; done'
"""
_NO_HOST = "systemctl stop net-server systemd-networkd.socket systemd-networkd; ip link del br-lab; rm -rf /srv/net"

_SCRIPT = """\
cat > /lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev eth0
echo "$ip $router" > /lease.is
END
chmod +x /lease
for word in $(cat /proc/cmdline); do
    case "$word" in
        vmnet=*) static=${word#vmnet=} ;;
    esac
done
ip link set lo up
ip link set eth0 up
say "mac $(cat /sys/class/net/eth0/address), mtu $(cat /sys/class/net/eth0/mtu)"
if [ -n "$static" ]; then
    ip address add "${static%,*}/24" dev eth0
    echo "${static%,*} ${static#*,}" > /lease.is
else
    until [ -s /lease.is ]; do udhcpc -q -n -t 3 -i eth0 -s /lease > /dev/null 2>&1; done
fi
read -r own host < /lease.is
say "address $own from $host"
ping -c 3 -s 8000 "$host" > /dev/null && say "the host answers"
mkdir /www
wget -q -O /www/data "http://$host:8000/data"
httpd -p 80 -h /www && say "serves $(md5sum < /www/data)"
while sleep 0.05; do
    carrier=$(cat /sys/class/net/eth0/carrier)
    [ "$carrier" = "$told" ] || say "carrier $carrier"
    told=$carrier
done &
dmesg -r | sed -n 's/^<[0-4]>/vmservice guest: warning /p'
round=0
while :; do
    round=$((round + 1))
    sum=$(wget -q -T 20 -O - "http://$host:8000/data" | md5sum)
    say "round $round ${sum%% *}"
done
"""
# A guest that is paused answers no ARP, so its host may say of a new connection that there is no way to it.
_FETCH = """\
import hashlib, sys, time, urllib.request
while True:
    try:
        print("fetched", hashlib.md5(urllib.request.urlopen(sys.argv[1], timeout=60).read()).hexdigest(), flush=True)
    except OSError as error:
        print("no answer:", error, flush=True)
        time.sleep(1)
"""


@contextmanager
def serving(host: LabHost) -> Iterator[str]:
    """What the host's file hashes to. Within the test, for a host that is started anew has none of it."""
    host.run(_HOST, check=True)
    try:
        yield host.run("md5sum < /srv/net/data", check=True).stdout.split()[0]
    finally:
        with suppress(HostDied):
            host.run(_NO_HOST)


def network(vm: UnitVm) -> dict[str, object]:
    """What the bus says of its network."""
    ((_, _, details),) = (device for device in vm.get("Devices") if device[0] == "network")
    return {name: value["data"] for name, value in details.items()}


def journal_of(host: LabHost, unit: str) -> str:
    return host.run(f"journalctl --sync; journalctl --no-pager --output=cat --unit={unit}", check=True).stdout


def wait_fetched(host: LabHost, unit: str, more: int) -> str:
    """What the unit has printed when it has fetched so many times more."""
    count = journal_of(host, unit).count("fetched") + more
    command = f"until [ $(journalctl --output=cat --unit={unit} | grep --count fetched) -ge {count} ]; do sleep 1; done"
    waited = host.run(f"timeout {BOOT_TIMEOUT_SEC} sh -c '{command}'", timeout=BOOT_TIMEOUT_SEC + 30)
    said = journal_of(host, unit)
    assert waited.returncode == 0, f"not {count} times: {said}{host.run('ss -tni; ip -s link; ip neighbour').stdout}"
    return said


def test_networks_of_real_guests(guests: dict[str, UnitVm]) -> None:
    host = next(iter(guests.values())).host
    assert isinstance(host, LabHost)
    with serving(host) as served:
        _use_networks(host, guests, served)


def _use_networks(host: LabHost, guests: dict[str, UnitVm], served: str) -> None:
    by_vhost = RELEASES[0]
    transports = dict(zip(RELEASES, ("pci", "mmio"), strict=True))
    try:
        for release, vm in guests.items():
            is_bridged = release == RELEASES[1]
            static = f" vmnet={BRIDGED_GUEST},{BRIDGE_ADDRESS}" if is_bridged else ""
            bridge = 'bridge = "br-lab"\n' if is_bridged else "queues = 2\n"
            if release != by_vhost:
                host.run("mv /dev/vhost-net /dev/vhost-net.off", check=True)
            vm.configure(
                guest_config(
                    release=release,
                    initramfs=guest_with_script(vm, release, _SCRIPT, "virtio_net", "af_packet"),
                    cmdline=f"console=ttyS0 quiet{static}",
                    cpus=2,
                    more=f'[[network]]\nname = "lan"\n{bridge}[virtio]\ntransport = "{transports[release]}"\n',
                )
            )
            vm.start()
            assert network(vm)["vhost"] is (release == by_vhost)
    finally:
        host.run("test -e /dev/vhost-net || mv /dev/vhost-net.off /dev/vhost-net")

    for vm in guests.values():
        seen = vm.wait_for("round 1 ", BOOT_TIMEOUT_SEC)
        assert f"vmservice guest: mac {network(vm)['mac']}, mtu 1500" in seen
        assert "vmservice guest: the host answers" in seen
        assert f"vmservice guest: serves {served}" in seen
        (own,) = re.findall(r"guest: address (\S+) from", seen)
        host.run(f"systemd-run --quiet --unit=fetch-{vm.name} python3 -c '{_FETCH}' http://{own}/data", check=True)
        vm.wait_for("round 2 ", BOOT_TIMEOUT_SEC)

    # In the middle of transfers both ways; the other guest goes on meanwhile.
    for vm in guests.values():
        vm.call("Pause")
    host.run("sleep 4", check=True)
    for vm in guests.values():
        vm.call("Resume")
    for vm in guests.values():
        done = max(int(number) for number in re.findall(r"round (\d+) ", vm.journal()))
        vm.wait_for(f"round {done + 2} ", BOOT_TIMEOUT_SEC)
        rounds = re.findall(r"round \d+ (\w{32})", vm.journal())
        assert set(rounds) == {served}
        said = wait_fetched(host, f"fetch-{vm.name}", 2)
        assert set(re.findall(r"fetched (\w+)", said)) == {served}
        assert "Traceback" not in said
        assert "timed out" not in said
        host.run(f"systemctl stop fetch-{vm.name}")

    for release, vm in guests.items():
        counted = vm.get("Stats")
        assert ("network.lan.received" in counted) is (release != by_vhost)
        vm.host.run(f'sed -i \'s/^name = "lan"/&\\nlink = "down"/\' /etc/vmservice/{vm.name}.toml', check=True)
        vm.host.run(f"systemctl reload {vm.unit}", check=True)
        vm.wait_for("carrier 0")
        vm.host.run(f"sed -i '/^link/d' /etc/vmservice/{vm.name}.toml && systemctl reload {vm.unit}", check=True)
        done = max(int(number) for number in re.findall(r"round (\d+) ", vm.journal()))
        vm.wait_for(f"round {done + 2} {served}", BOOT_TIMEOUT_SEC)
        assert vm.state == "running"
        vm.host.run(f"rm -f /srv/{vm.name}.initramfs")
