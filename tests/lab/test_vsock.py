"""Sockets between the host and real Linux guests, whose packets the host's kernel moves."""

from __future__ import annotations

import re

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC, unexplained_warnings
from lab.prepare import guest_config
from support.unit_vm import UnitVm

CMDLINE = "console=ttyS0 quiet vmtest=vsock"
HOST_HOLD = 5001


def config(vm: UnitVm, release: str, vsock: str, more: str = "") -> str:
    initramfs = f"/srv/{vm.name}.initramfs"
    parts = f"/lab/{release}.initramfs /lab/{release}-vsock.initramfs /lab/vsock.initramfs"
    vm.host.run(f"cat {parts} > {initramfs}", check=True)
    return guest_config(release=release, initramfs=initramfs, cmdline=CMDLINE, more=f"[vsock]\n{vsock}\n{more}")


def host_side(vm: UnitVm, *words: object, timeout: float = 120) -> str:
    done = vm.host.run(f"python3 /lab/vsock_host.py {' '.join(map(str, words))}", timeout=timeout)
    assert done.returncode == 0, f"{done}\n{vm.journal()[-3000:]}"
    return done.stdout


def in_background(vm: UnitVm, name: str, *words: object) -> None:
    """The host's side goes on while the test does something else; what it prints is in the journal of a unit of that name."""
    command = f"systemd-run --quiet --unit={name} python3 -u /lab/vsock_host.py {' '.join(map(str, words))}"
    vm.host.run(command, check=True)


def background_said(vm: UnitVm, name: str, pattern: str, timeout: float = 60) -> str:
    command = (
        f"timeout {timeout} sh -c 'until journalctl --output=cat --unit={name} | grep -E \"{pattern}\"; do sleep 0.2; done'"
    )
    done = vm.host.run(command, timeout=timeout + 30)
    assert done.returncode == 0, vm.host.run(f"journalctl --output=cat --unit={name}").stdout
    return done.stdout.strip()


def cid_of(vm: UnitVm) -> int:
    (details,) = [details for kind, _, details in vm.get("Devices") if kind == "vsock"]
    return int(details["cid"]["data"])


def check_halves(vm: UnitVm) -> None:
    """Either side may end its half, and hears on."""
    vm.wait_for("vsock: serves", BOOT_TIMEOUT_SEC)
    cid = cid_of(vm)
    assert host_side(vm, "halves", cid).splitlines() == [
        "host first: True",
        "guest first: from the guest",
        f"asked by {cid}: asked by the guest",
        "a port that nobody has: Connection reset by peer",
    ]
    vm.wait_for("vsock: heard after its own end: 21 ")
    console = vm.wait_for("vsock: the host answered after the guest's end: heard asked by the guest")
    assert unexplained_warnings(console) == []


def test_two_guests_of_one_host(guests: dict[str, UnitVm]) -> None:
    for release, cid in (("trixie", 0), ("bookworm", 4242)):
        guests[release].configure(config(guests[release], release, f"cid = {cid}"))
        guests[release].start()
    for vm in guests.values():
        check_halves(vm)
    assert cid_of(guests["trixie"]) > 65535
    assert cid_of(guests["bookworm"]) == 4242
    _check_taken(guests["bookworm"])
    assert host_side(guests["trixie"], "many", cid_of(guests["trixie"]), 2000, timeout=300).startswith("2000 of 2000 ")


def _check_taken(vm: UnitVm) -> None:
    """A second VM with the number of this one does not start, and says why."""
    other = UnitVm(vm.host, f"{vm.name}-second")
    try:
        other.configure(config(other, "bookworm", f"cid = {cid_of(vm)}"))
        assert vm.host.run(f"systemctl start {other.unit}", timeout=60).returncode != 0
        assert "vsock.cid is 4242, which another virtual machine on this host has" in other.journal()
    finally:
        other.remove()


@pytest.mark.long
def test_a_pause_and_a_reset_under_traffic(vm: UnitVm) -> None:
    """Over MMIO, where interrupts go through the VMM."""
    vm.configure(config(vm, "trixie", "", '[virtio]\ntransport = "mmio"\n'))
    vm.start()
    check_halves(vm)
    cid = cid_of(vm)
    in_background(vm, "stream", "stream", cid, 8 << 20)
    background_said(vm, "stream", "^begins")
    vm.call("Pause")
    vm.host.run("sleep 5")
    assert "whole" not in vm.host.run("journalctl --output=cat --unit=stream").stdout
    vm.call("Resume")
    assert background_said(vm, "stream", "^whole", 120) == "whole: True"

    in_background(vm, "hold", "hold", cid)
    background_said(vm, "hold", "^held")
    vm.call("Reboot")
    assert background_said(vm, "hold", "^ended", 30) == "ended with Connection reset by peer"
    vm.host.run(
        f"timeout {BOOT_TIMEOUT_SEC} sh -c 'until python3 /lab/vsock_host.py many {cid} 10; do sleep 1; done'", timeout=180
    )
    assert cid_of(vm) == cid
    assert host_side(vm, "many", cid, 100).startswith("100 of 100 ")
    vm.stop()
    assert vm.show("Result") == "success"


def test_a_guest_that_is_restored_knows_that_its_connections_are_gone(vm: UnitVm) -> None:
    log = "/srv/restored.log"
    serial = f'[serial]\nmode = "file"\npath = "{log}"\n'
    vm.configure(config(vm, "trixie", "cid = 4343", serial))
    in_background(vm, "listen", "listen", HOST_HOLD, 2)
    words = f"/etc/vmservice/{vm.name}.toml {log} 'vsock: holds a connection' 'vsock: is connected again'"
    done = vm.host.run(f"touch {log}; python3 /lab/restored.py {words}; status=$?; cat {log}; exit $status", timeout=400)
    assert done.returncode == 0, done
    ended = re.search(r"vsock: the connection ended with (.*)", done.stdout)
    assert ended is not None, done.stdout
    # ECONNRESET, or ENOTCONN where it was not in the call yet when the machine was paused.
    assert ended[1].strip() in ("errno 104", "errno 107")
    assert background_said(vm, "listen", "^accepted") == "accepted 2"
