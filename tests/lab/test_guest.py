"""Real Linux guests as systemd services, on a real systemd host: Debian kernels, unmodified."""

from __future__ import annotations

import base64
import re
import shlex

import pytest
from lab.host import LabHost
from lab.prepare import guest_config
from support.unit_vm import UnitVm

BOOT_TIMEOUT_SEC = 120

# Copies a vmlinux and gives its PVH note (name "Xen", type 18, an address of 8 bytes) a type that nobody looks for.
WITHOUT_PVH_NOTE = r"""
import struct, sys
image = open(sys.argv[1], "rb").read()
note = struct.pack("<III", 4, 8, 18) + b"Xen\0"
assert image.count(note) == 1
open(sys.argv[2], "wb").write(image.replace(note, struct.pack("<III", 4, 8, 0x7fff) + b"Xen\0"))
"""

# Warnings of a guest's kernel that are not about our machine.
EXPLAINED = (
    r"amd_pstate: the _CPC object is not present"  # the lab's processor says it is AMD's; power management is the host's
    r"|PCI: (Fatal: No config space access function found|System does not support PCI)"  # so it is, with transport "mmio"
    r"|hrtimer: interrupt took|clocksource: .*|sched_clock: .*"  # the emulated host is slow
)


def test_the_host_can_run_guests(lab: LabHost) -> None:
    """check-host agrees, and the account of the unit may use /dev/kvm."""
    report = lab.run("vmservice check-host", check=True).stdout
    assert "missing" not in report
    assert "limited" not in report
    assert "b'5\\n'" in report


def test_the_demo_guest_from_start_to_stop(vm: UnitVm) -> None:
    vm.start()
    assert vm.state == "running"
    console = vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    assert "vmservice guest: /init reached" in console
    assert "1 buttons" in console

    vm.stop()
    assert "vmservice guest: power button" in vm.journal()
    assert vm.show("Result") == "success"
    assert vm.show("ActiveState") == "inactive"


@pytest.mark.parametrize("cpus", [1, 4])
@pytest.mark.parametrize("release", ["trixie", "bookworm"])
@pytest.mark.parametrize(
    ("image", "protocol"), [("vmlinuz", "64-bit"), ("vmlinux", "PVH"), ("vmlinux without its note", "64-bit")]
)
def test_kernels(vm: UnitVm, release: str, image: str, protocol: str, cpus: int) -> None:
    """A bzImage, and the ELF inside it by both of its entries, of two Debian releases, each with one vCPU and with four."""
    kernel = f"/lab/{release}.{image}"
    if image.endswith("note"):
        kernel = f"/srv/{release}.vmlinux"
        vm.host.run(f"python3 -c {shlex.quote(WITHOUT_PVH_NOTE)} /lab/{release}.vmlinux {kernel}", check=True)
    vm.configure(guest_config(kernel=kernel, initramfs=f"{release}.initramfs", cpus=cpus))
    vm.start()
    console = vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)

    assert f"booting {kernel} by the {protocol} boot protocol" in console
    assert f", {cpus} CPUs," in console
    assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", console)
    vm.stop()
    assert "vmservice guest: power button" in vm.journal()


def test_the_whole_console_of_a_boot_is_in_the_journal(vm: UnitVm) -> None:
    """Without `quiet`: some three hundred lines, the first and the last of them and none out of order."""
    vm.configure(guest_config(cmdline="console=ttyS0 vmtest=poweroff"))
    vm.start()
    vm.wait_inactive(BOOT_TIMEOUT_SEC)
    console = vm.journal("--output=cat", f"SYSLOG_IDENTIFIER=vm-{vm.name}")

    assert "Linux version 6" in console
    assert "Command line: console=ttyS0 vmtest=poweroff" in console
    stamps = [float(stamp) for stamp in re.findall(r"^\[ *(\d+\.\d+)\]", console, re.MULTILINE)]
    assert len(stamps) > 200
    assert stamps == sorted(stamps)
    assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", console)
    assert vm.show("Result") == "success"


def test_pause_stops_the_guest_and_resume_continues_it(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    vm.call("Pause")
    vm.host.run("journalctl --sync")
    beats = vm.journal().count("beat ")

    # Three seconds on the host's own clock.
    vm.host.run("sleep 3; journalctl --sync")
    assert vm.journal().count("beat ") == beats
    vm.call("Resume")
    vm.wait_for(f"beat {beats + 2}$")
    assert not re.search(r"soft lockup|rcu.*stall|clocksource.*unstable", vm.journal())


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_virtio_devices(vm: UnitVm, release: str, transport: str) -> None:
    more = f'[console]\nmode = "journal"\n[balloon]\nsize = "64M"\n[virtio]\ntransport = "{transport}"\n'
    cmdline = "console=ttyS0 quiet vmtest=virtio"
    vm.configure(guest_config(kernel=f"{release}.vmlinuz", initramfs=f"{release}.initramfs", cmdline=cmdline, more=more))
    vm.start()
    vm.wait_for("virtio end", BOOT_TIMEOUT_SEC)
    console = vm.journal("--output=cat", "VM_CONSOLE=serial")

    place = r"0000:00:0\d.0" if transport == "pci" else r"LNRO0005:0\d"
    for driver in ("virtio_console", "virtio_rng", "virtio_balloon"):
        assert re.search(f"vmservice guest: {driver} at {place}$", console, re.MULTILINE), console
    assert "vmservice guest: 64 bytes from virtio_rng.0" in console
    assert vm.journal("--output=cat", "VM_CONSOLE=hvc") == "vmservice guest: on the virtio-console\n"
    free = re.search(r"(\d+) KiB free with the balloon", console)
    assert free is not None
    assert int(free[1]) < (256 - 64) << 10
    unexplained = [line for line in re.findall("guest: warning (.*)", console) if not re.search(EXPLAINED, line)]
    assert unexplained == []
    vm.stop()
    assert vm.show("Result") == "success"


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_resize_up_and_down(vm: UnitVm, release: str) -> None:
    vm.configure(guest_config(kernel=f"{release}.vmlinuz", initramfs=f"{release}.initramfs", max_cpus=4))
    vm.start()
    vm.wait_for("ready, 1 buttons", BOOT_TIMEOUT_SEC)
    threads, fds = _belongings(vm)
    for count in (4, 2, 1, 3, 1):
        vm.call("Resize", "y", str(count))
        assert vm.get("VCPUs") == count
        vm.wait_for(f"nproc is now {count}$")
    # KVM keeps a vCPU once made, so the three that came and went are used again; each has a descriptor and mmap's copy of it.
    assert _belongings(vm) == (threads, fds + 2 * 3)
    assert "takes 1 to 4" in vm.refusal("Resize", "y", "5")
    assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", vm.journal())
    vm.stop()
    assert vm.show("Result") == "success"


def test_two_hundred_pauses_of_a_busy_guest(vm: UnitVm) -> None:
    vm.configure(guest_config(cpus=2, cmdline="console=ttyS0 quiet vmtest=busy"))
    vm.start()
    vm.wait_for("beat 2$", BOOT_TIMEOUT_SEC)
    before = _belongings(vm)
    vm.host.run(
        f"set -e; for i in $(seq 200); do for method in Pause Resume; do"
        f" busctl call {vm.bus_name} /org/vmservice/VM1 org.vmservice.VM1 $method; done; done",
        timeout=600,
        check=True,
    )

    assert vm.state == "running"
    beats = vm.journal().count("beat ")
    vm.wait_for(f"beat {beats + 2}$")
    assert _belongings(vm) == before
    vm.stop()
    assert vm.show("Result") == "success"


def test_twenty_restarts(vm: UnitVm) -> None:
    vm.start()
    for _ in range(20):
        vm.wait_for("ready, 1 buttons", BOOT_TIMEOUT_SEC)
        vm.restart()
    assert vm.state == "running"
    assert vm.journal().count("vmservice guest: power button") == 20
    assert "forced" not in vm.journal()


def test_a_guest_that_reboots_is_reset_in_place(vm: UnitVm) -> None:
    vm.configure(guest_config(cmdline="console=ttyS0 quiet vmtest=reboot"))
    vm.start()
    pid = vm.main_pid()
    boots = f"journalctl --unit={vm.unit} --output=cat | grep -c /init.reached"
    vm.host.run(f"timeout 120 sh -c 'until [ $({boots}) -ge 3 ]; do sleep 1; done'", timeout=150, check=True)
    assert vm.main_pid() == pid


def test_a_panic_that_reboots_is_a_reset(vm: UnitVm) -> None:
    vm.configure(guest_config(cmdline="console=ttyS0 quiet panic=-1 vmtest=panic", service='on_reset = "exit"'))
    vm.host.run(f"systemctl start --no-block {vm.unit}", check=True)
    restarts = f"timeout 120 sh -c 'until [ $(systemctl show -P NRestarts {vm.unit}) -ge 1 ]; do sleep 0.5; done'"
    vm.host.run(restarts, timeout=150, check=True)
    assert "sysrq triggered crash" in vm.journal()


def test_a_guest_has_the_memory_and_cpus_it_was_given(vm: UnitVm) -> None:
    vm.configure(guest_config(cpus=2, memory="1G"))
    vm.start()
    console = vm.wait_for("vmservice guest: Linux", BOOT_TIMEOUT_SEC)
    found = re.search(r"(\d+) CPUs, (\d+) KiB", console)
    assert found is not None
    assert int(found[1]) == 2
    assert 900_000 < int(found[2]) < 1_048_576
    assert vm.get("Memory") == 2**30


def test_the_tables_a_guest_sees_are_sound(vm: UnitVm) -> None:
    """As the guest's kernel found them in its memory: iasl takes each apart and puts it together again without a complaint."""
    vm.configure(guest_config(cpus=2, cmdline="console=ttyS0 quiet vmtest=tables"))
    vm.start()
    vm.wait_inactive(BOOT_TIMEOUT_SEC)
    console = vm.journal("--output=cat", f"SYSLOG_IDENTIFIER=vm-{vm.name}")
    tables = dict(re.findall(r"vmservice guest: table (\w+)\n((?:[A-Za-z0-9+/=]+\n)+)", console))

    assert {"APIC", "DSDT", "FACP"} <= tables.keys()
    for name, text in tables.items():
        folder = f"/tmp/{vm.name}-{name}"
        vm.host.run(f"mkdir {folder}; cat > {folder}/{name}.dat", stdin=base64.b64decode(text), check=True)
        taken_apart = vm.host.run(f"cd {folder} && iasl -d {name}.dat 2>&1 && iasl -we {name}.dsl 2>&1", check=True).stdout
        assert "0 Errors, 0 Warnings" in taken_apart, taken_apart


@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_persons_at_a_virtio_console(vm: UnitVm, release: str) -> None:
    """Who come in turn, each with a terminal of another size, which the guest learns."""
    cmdline = "console=ttyS0 quiet vmtest=console"
    more = '[console]\nmode = "pty"\n'
    vm.configure(guest_config(kernel=f"{release}.vmlinuz", initramfs=f"{release}.initramfs", cmdline=cmdline, more=more))
    vm.start()
    vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
    assert re.search(r"the hvc console is at /dev/pts/\d+", vm.journal())
    before = _belongings(vm)
    for columns, rows, word in ((100, 30, "one"), (132, 43, "two")):
        command = f"vmservice console {vm.name}"
        shown = vm.host.run(f"python3 /lab/person.py {columns} {rows} {word} {command}", timeout=90, check=True).stdout
        assert f"you typed {word}" in shown
        assert "vmservice: left the hvc console" in shown
        vm.wait_for(f"typed at hvc0: {word}$")
        vm.wait_for(f"hvc0 has {rows} {columns}$")
    assert _belongings(vm) == before
    vm.stop()
    assert vm.show("Result") == "success"


@pytest.mark.parametrize(
    ("masked", "interrupts"),
    [
        ((), "our IOAPIC"),
        (("SPLIT_IRQCHIP",), "the IOAPIC of KVM"),
        (("TSC_DEADLINE_TIMER",), "the IOAPIC of KVM"),
        (("SIGNAL_MSI", "READONLY_MEM", "COALESCED_PIO"), "the IOAPIC of KVM"),
    ],
    ids=lambda value: "-".join(value).lower() if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_fallbacks(lab: LabHost, release: str, masked: tuple[str, ...], interrupts: str) -> None:
    """A host's KVM that lacks what newer ones have, by a seam that no operator can reach."""
    config = guest_config(
        kernel=f"{release}.vmlinuz", initramfs=f"{release}.initramfs", cpus=2, cmdline="console=ttyS0 quiet vmtest=poweroff"
    )
    lab.run("cat > /tmp/masked.toml", stdin=config.encode(), check=True)
    command = shlex.join(["python3", "/lab/masked.py", "/tmp/masked.toml", str(BOOT_TIMEOUT_SEC), *masked])
    shown = lab.run(command, timeout=BOOT_TIMEOUT_SEC + 30).stdout
    assert "vmservice guest: /init reached" in shown
    assert ", 2 CPUs," in shown
    assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", shown)
    assert shown.splitlines()[-1] == f"masked: {interrupts}; ended by poweroff"


@pytest.mark.parametrize(
    "keys", ['file = "/dev/shm"', 'file = "/dev/shm"\nprefault = true', "hugepages = true", "hugepages = true\nprefault = true"]
)
def test_memory_of_other_kinds(vm: UnitVm, keys: str) -> None:
    """With a balloon, which gives back what can be given back of it."""
    vm.host.run("sysctl -q vm.nr_hugepages=160", check=True)
    try:
        vm.configure(guest_config(memory_keys=keys + "\n", more='[balloon]\nsize = "64M"\n'))
        vm.start()
        vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
        free = int(vm.host.run("grep HugePages_Free /proc/meminfo | tr -dc 0-9", check=True).stdout)
        assert (free < 160) == ("hugepages" in keys)
        vm.stop()
        assert vm.show("Result") == "success"
    finally:
        vm.host.run("sysctl -q vm.nr_hugepages=0")


def test_too_few_huge_pages_are_said(vm: UnitVm) -> None:
    vm.configure(guest_config(memory_keys="hugepages = true\n"))
    assert vm.host.run(f"systemctl start {vm.unit}").returncode != 0
    assert "vmservice: " not in vm.journal()
    assert re.search(r"cannot have 128 huge pages of 2 MiB .* 0 of this host's 0 are free; vm.nr_hugepages must", vm.journal())
    assert vm.show("ExecMainStatus") == "71"


def test_two_guests_share_pages(vm: UnitVm) -> None:
    """KSM; both run the same kernel and the same programs."""
    ksm = "/sys/kernel/mm/ksm"
    vm.host.run(f"echo 20000 > {ksm}/pages_to_scan; echo 1 > {ksm}/run", check=True)
    other = UnitVm(vm.host, f"{vm.name}b")
    try:
        for guest in (vm, other):
            guest.configure(guest_config(memory_keys="mergeable = true\n"))
            guest.start()
        for guest in (vm, other):
            guest.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
        # Kernel text alone is some 14 MiB.
        vm.host.run(
            f"timeout 120 sh -c 'until [ $(cat {ksm}/pages_sharing) -gt 3000 ]; do sleep 1; done'", timeout=150, check=True
        )
        assert "cannot be merged" not in vm.journal() + other.journal()
    finally:
        other.remove()
        vm.host.run(f"echo 0 > {ksm}/run")


def _belongings(vm: UnitVm) -> tuple[int, int]:
    """How many threads and file descriptors the VMM has."""
    counted = vm.host.run(f"ls /proc/{vm.main_pid()}/task | wc -l; ls /proc/{vm.main_pid()}/fd | wc -l", check=True).stdout
    threads, fds = counted.split()
    return int(threads), int(fds)
