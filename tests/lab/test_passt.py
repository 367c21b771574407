"""A real Linux on a network by passt of Debian 13: an address, the way out, a port inwards, and what it sees of passt's end."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lab.channel import HostDied
from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.host import LabHost
from lab.prepare import guest_config, guest_with_script
from support.unit_vm import UnitVm

# The world outside is a network namespace of the lab's host, at the other end of a cable; the host itself has nothing listening
# but the guest's ports.
_OUTSIDE = """\
set -e
sysctl --quiet --write net.ipv4.ping_group_range='0 2147483647'
modprobe veth
ip netns add outside
ip link add uplink type veth peer name port netns outside
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.2
ip -n outside address add 192.0.2.2/24 dev port
ip -n outside link set port up
ip -n outside link set lo up
mkdir -p /srv/outside
head -c 3000000 /dev/urandom > /srv/outside/data
systemd-run --quiet --unit=outside --service-type=exec ip netns exec outside \
    python3 -m http.server --directory /srv/outside --bind 192.0.2.2 8000
timeout 20 sh -c 'until ip netns exec outside ss -ltn | grep --quiet :8000; do sleep 0.1; done'
"""
_NO_OUTSIDE = "systemctl stop outside; ip netns delete outside; ip link delete uplink; rm -rf /srv/outside"

_SCRIPT = """\
cat > /lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev eth0
ip route add default via "$router"
echo "vmservice guest: lease $ip of $router" > /dev/console
END
chmod +x /lease
ip link set lo up
ip link set eth0 up
say "mac $(cat /sys/class/net/eth0/address), mtu $(cat /sys/class/net/eth0/mtu)"
udhcpc -q -n -i eth0 -s /lease > /dev/null 2>&1 || say "no lease"
ping -c 1 192.0.2.2 > /dev/null && say "the gateway answers"
mkdir /www && echo "hello from the guest" > /www/index.html && httpd -p 80 -h /www && say "serves"
while sleep 0.05; do
    carrier=$(cat /sys/class/net/eth0/carrier)
    [ "$carrier" = "$told" ] || say "carrier $carrier"
    told=$carrier
done &
round=0
while :; do
    round=$((round + 1))
    sum=$(wget -q -T 10 -O - http://192.0.2.2:8000/data | md5sum)
    say "round $round ${sum%% *}"
done
"""
_FETCH = (
    "ip netns exec outside python3 -c"
    " 'import urllib.request as u; print(u.urlopen(\"http://192.0.2.1:8080/\", timeout=20).read().decode())'"
)


@contextmanager
def outside(host: LabHost) -> Iterator[str]:
    """What the file that is served there hashes to. Within the test, for a host that is started anew has none of it."""
    host.run(_OUTSIDE, check=True)
    try:
        yield host.run("md5sum < /srv/outside/data", check=True).stdout.split()[0]
    finally:
        with suppress(HostDied):
            host.run(_NO_OUTSIDE)


def test_a_real_linux_uses_it_and_outlives_its_passt(vm: UnitVm) -> None:
    assert isinstance(vm.host, LabHost)
    with outside(vm.host) as served:
        _use_passt(vm.host, vm, served)


def _use_passt(host: LabHost, vm: UnitVm, served: str) -> None:
    initramfs = guest_with_script(vm, "trixie", _SCRIPT, "virtio_net", "af_packet")
    network = '[[network]]\nname = "lan"\nmode = "passt"\nmac = "02:00:00:00:00:07"\nforward = ["8080:80/tcp"]\n'
    vm.configure(guest_config(initramfs=initramfs, more=network))
    vm.start()
    vm.wait_for("serves", BOOT_TIMEOUT_SEC)
    seen = vm.wait_for("round 1 ", BOOT_TIMEOUT_SEC)
    assert "vmservice guest: mac 02:00:00:00:00:07, mtu 65520" in seen
    assert "vmservice guest: lease 192.0.2.1 of 192.0.2.2" in seen
    assert "vmservice guest: the gateway answers" in seen
    assert "hello from the guest" in host.run(_FETCH, check=True).stdout

    # In the middle of a transfer, most of the time.
    for number in (2, 3, 4):
        vm.call("Pause")
        host.run("sleep 3", check=True)
        vm.call("Resume")
        vm.wait_for(f"round {number} ", BOOT_TIMEOUT_SEC)
    rounds = re.findall(r"round \d+ (\w{32})", vm.journal())
    assert len(rounds) >= 3
    assert set(rounds) == {served}

    host.run(f"systemctl kill --signal=KILL vm-passt@{vm.name}:lan.service", check=True)
    vm.wait_for("the passt of the network lan has ended; the guest's link is down until it is there again")
    vm.wait_for("carrier 0")
    vm.wait_for("the passt of the network lan is there again")
    done = max(int(number) for number in re.findall(r"round (\d+) ", vm.journal()))
    vm.wait_for(f"round {done + 2} {served}", BOOT_TIMEOUT_SEC)
    assert "hello from the guest" in host.run(_FETCH, check=True).stdout
    assert vm.state == "running"
    vm.call("Reboot")
    host.run("journalctl --sync")
    command = f"until [ $(journalctl --output=cat --unit={vm.unit} | grep --count 'guest: serves') = 2 ]; do sleep 0.5; done"
    host.run(f"timeout {BOOT_TIMEOUT_SEC} sh -c {shlex.quote(command)}", timeout=BOOT_TIMEOUT_SEC + 20, check=True)
    assert "hello from the guest" in host.run(_FETCH, check=True).stdout
