"""Debian guests at networks of the host's: a tap of its own and a bridge, both with DHCP by systemd-networkd.

There is a guest of QEMU's in that bridge, too.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from lab.disk_guest import DiskGuest
from lab.host import LabHost
from lab.prepare import guest_with_script
from support.unit_vm import UnitVm

BRIDGE = "br-office"
_PREFIX = "10.98.1"
_PEER = f"{_PREFIX}.200"
# As docs/networks.md has it, but for the host's own card.
_HOST_FILES = {
    "br-office.netdev": f"[NetDev]\nName={BRIDGE}\nKind=bridge\n",
    "30-br-office.network": f"[Match]\nName={BRIDGE}\n[Network]\nAddress={_PREFIX}.1/24\nDHCPServer=yes\n"
    "[DHCPServer]\nPoolOffset=10\nPoolSize=50\n",
}
_GUEST_FILE = "[Match]\\nType=ether\\n[Network]\\nDHCP=ipv4\\n"

OWN_TAP = '[[network]]\nname = "lan"\n'
IN_BRIDGE = f'[[network]]\nname = "office"\nbridge = "{BRIDGE}"\n'

_PEER_SCRIPT = f"""\
ip link set lo up
ip address add {_PEER}/24 dev eth0
ip link set eth0 up
mkdir /www && echo "by QEMU" > /www/greeting && httpd -p 80 -h /www && say "serves"
"""
_PEER_UNIT = "qemu-peer"


@contextmanager
def host_networks(host: LabHost) -> Iterator[None]:
    """systemd-networkd with that bridge, while the caller has it."""
    for name, text in _HOST_FILES.items():
        host.run(f"mkdir -p /run/systemd/network && cat > /run/systemd/network/{name}", stdin=text.encode(), check=True)
    host.run("modprobe -a tun vhost_net bridge && systemctl start systemd-networkd", check=True)
    try:
        yield
    finally:
        host.run(
            f"systemctl stop {_PEER_UNIT} systemd-networkd.socket systemd-networkd; ip link del {BRIDGE};"
            f" rm -f /run/systemd/network/*office*"
        )


def start_peer(vm: UnitVm) -> None:
    """A guest of QEMU's in the bridge, that serves a file. It ends with `host_networks`."""
    initramfs = guest_with_script(vm, "trixie", _PEER_SCRIPT, "virtio_net", "af_packet")
    qemu = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "q35,accel=kvm", "-cpu", "host"),
        *("-m", "256", "-kernel", "/lab/trixie.vmlinuz", "-initrd", initramfs, "-append", "console=ttyS0 quiet"),
        *("-serial", "stdio", "-netdev", "tap,id=net,ifname=vb-qemu,script=no,downscript=no"),
        *("-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:99"),
    ]
    script = (
        f"systemd-run --quiet --unit={_PEER_UNIT} --property=StandardInput=null {shlex.join(qemu)} &&"
        f" timeout 30 sh -c 'until ip link set vb-qemu master {BRIDGE} up 2> /dev/null; do sleep 0.1; done'"
    )
    vm.host.run(script, check=True)


def take_addresses(guest: DiskGuest, count: int) -> list[str]:
    """The guest's administrator asks for one by DHCP at each network card; that in the bridge comes first."""
    shown = guest.type(
        f"printf '{_GUEST_FILE}' > /etc/systemd/network/50-wired.network && systemctl start systemd-networkd",
        f"timeout 90 sh -c 'until [ $(busybox ip -4 -o addr | grep -c global) = {count} ]; do sleep 0.5; done'",
        "busybox ip -4 -o addr",
    )
    found = re.findall(r"inet (\d+\.\d+\.\d+\.\d+)/\d+ .*global", shown)
    # The other network is one that systemd-networkd chooses of those that are private.
    return sorted(found, key=lambda address: not address.startswith(f"{_PREFIX}."))


def check_networks(guests: dict[str, DiskGuest]) -> None:
    """Each has its addresses; in the bridge they reach each other, the host and QEMU's guest; the host reaches a shell."""
    newer, older = guests["trixie"], guests["bookworm"]
    in_bridge, own = take_addresses(newer, 2)
    (other,) = take_addresses(older, 1)
    assert in_bridge.startswith(f"{_PREFIX}.")
    assert other.startswith(f"{_PREFIX}.")
    assert own not in (in_bridge, other)
    host = newer.host
    serves = f"timeout 300 sh -c 'until journalctl --unit={_PEER_UNIT} --output=cat | grep -q serves; do sleep 0.5; done'"
    host.run(serves, timeout=330, check=True)
    for guest, there in ((newer, other), (older, in_bridge)):
        shown = guest.type(
            f"busybox ping -c 2 -w 60 {there} > /dev/null",
            f"busybox ping -c 2 -w 60 {_PREFIX}.1 > /dev/null",
            f"exec 3<> /dev/tcp/{_PEER}/80; printf 'GET /greeting HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
        )
        assert "\nby QEMU\n" in shown, shown
    newer.type("systemctl start ssh.socket")
    by_address = host.run(f"ssh root@{own} hostname; ssh root@{in_bridge} hostname", timeout=180, check=True)
    assert by_address.stdout == "trixie\ntrixie\n"


def start_client(vm: UnitVm) -> None:
    """A unit of the host's that is ordered behind the guest, and asks its ssh server at once; started with the VM."""
    unit = (
        f"[Unit]\nRequires={vm.unit}\nAfter={vm.unit}\n"
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nEnvironment=HOME=/root\n"
        f"ExecStart=vmservice ssh root@{vm.name} hostname\n"
    )
    vm.host.run(
        "cat > /run/systemd/system/client.service; systemctl daemon-reload; systemctl start --no-block client",
        stdin=unit.encode(),
        check=True,
    )


def check_client(vm: UnitVm) -> None:
    """It found the guest's service there at its first try."""
    vm.host.run("timeout 300 systemctl start client", timeout=330, check=True)
    said = vm.host.run("journalctl --output=cat --unit=client", check=True).stdout
    assert "\ntrixie\n" in said, said
    vm.host.run("rm /run/systemd/system/client.service; systemctl stop client; systemctl daemon-reload", check=True)
