"""The devices of a machine, as the drivers of real Linux guests find them."""

from __future__ import annotations

import base64
import re
import shlex

import pytest
from lab.guest_checks import BOOT_TIMEOUT_SEC, belongings, serial_console, unexplained_warnings
from lab.host import LabHost
from lab.prepare import guest_config
from lab.root_tree import RELEASES
from support.unit_vm import UnitVm


@pytest.mark.parametrize("transport", ["pci", pytest.param("mmio", marks=pytest.mark.long)])
def test_virtio_devices(guests: dict[str, UnitVm], transport: str) -> None:
    more = f'[console]\nmode = "journal"\n[balloon]\nsize = "64M"\n[virtio]\ntransport = "{transport}"\n'
    cmdline = "console=ttyS0 quiet vmtest=virtio"
    for release, vm in guests.items():
        initramfs = f"/srv/{release}-lspci.initramfs"
        vm.host.run(f"cat /lab/{release}.initramfs /lab/lspci.initramfs > {initramfs}", check=True)
        vm.configure(guest_config(release=release, initramfs=initramfs, cmdline=cmdline, more=more))
        vm.start()
    for vm in guests.values():
        vm.wait_for("virtio end", BOOT_TIMEOUT_SEC)
        console = serial_console(vm)

        place = r"0000:00:0\d.0" if transport == "pci" else r"LNRO0005:0\d"
        for driver in ("virtio_console", "virtio_rng", "virtio_balloon"):
            assert re.search(f"vmservice guest: {driver} at {place}$", console, re.MULTILINE), console
        assert "vmservice guest: 64 bytes from virtio_rng.0" in console
        assert vm.journal("--output=cat", "VM_CONSOLE=hvc") == "vmservice guest: on the virtio-console\n"
        free = re.search(r"(\d+) KiB free with the balloon", console)
        assert free is not None
        assert int(free[1]) < (256 - 64) << 10
        assert unexplained_warnings(console) == []
        functions = _functions(console)
        assert len(functions) == (4 if transport == "pci" else 0)
        for function in functions[1:]:
            _assert_reads_cleanly(function)
        vm.stop()
        assert vm.show("Result") == "success"


def _functions(console: str) -> list[str]:
    """What `lspci -vv` said in a guest of each PCI function, the host bridge first. It said nothing else."""
    text = "\n".join(re.findall("vmservice guest: lspci: ?(.*)", console)) + "\n"
    # It is right in that: there is no modules.dep.
    text = text.replace("lspci: Unable to load libkmod resources: error -2\n", "")
    assert "lspci:" not in text
    functions = [part for part in text.split("\n\n") if part.strip()]
    assert all(re.match(r"00:0\d\.0 ", function) for function in functions), text
    return functions


def _assert_reads_cleanly(function: str) -> None:
    """A virtio function in use: its memory, its interrupts and its driver, no aborts and nothing out of reach."""
    for said in ("Mem+ BusMaster+", "(64-bit, non-prefetchable) [size=32K]", "MSI-X: Enable+", "driver in use: virtio-pci"):
        assert said in function
    for structure in ("CommonCfg", "Notify", "ISR", "DeviceCfg"):
        assert f"VirtIO: {structure}\n\t\tBAR=0" in function
    assert not re.search(r"Abort\+|ERR\+|\[disabled\]|<unassigned>|<access denied>|unknown header|!!!", function), function


def test_resize_up_and_down(guests: dict[str, UnitVm]) -> None:
    for release, vm in guests.items():
        vm.configure(guest_config(release=release, max_cpus=4))
        vm.start()
    for vm in guests.values():
        vm.wait_for("ready, 1 buttons", BOOT_TIMEOUT_SEC)
        threads, fds = belongings(vm)
        for count in (4, 2, 1, 3, 1):
            vm.call("Resize", "y", str(count))
            assert vm.get("VCPUs") == count
            vm.wait_for(f"nproc is now {count}$")
        # KVM keeps a vCPU once made: the three that came and went are used again, each with a descriptor, mmap's copy of it,
        # and one for its statistics.
        assert belongings(vm) == (threads, fds + 3 * 3)
        assert "takes 1 to 4" in vm.refusal("Resize", "y", "5")
        assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", vm.journal())
        vm.stop()
        assert vm.show("Result") == "success"


@pytest.mark.long
def test_the_tables_a_guest_sees_are_sound(vm: UnitVm) -> None:
    """As the guest's kernel found them in its memory: iasl takes each apart and puts it together again without a complaint."""
    vm.configure(guest_config(cpus=2, cmdline="console=ttyS0 quiet vmtest=tables"))
    vm.start()
    vm.wait_inactive(BOOT_TIMEOUT_SEC)
    tables = dict(re.findall(r"^vmservice guest: table (\w+) ([A-Za-z0-9+/=]+)", serial_console(vm), re.MULTILINE))

    assert {"APIC", "DSDT", "FACP", "WDAT"} <= tables.keys()
    for name, text in tables.items():
        folder = f"/tmp/{vm.name}-{name}"
        vm.host.run(f"mkdir {folder}; cat > {folder}/{name}.dat", stdin=base64.b64decode(text), check=True)
        taken_apart = vm.host.run(f"cd {folder} && iasl -d {name}.dat 2>&1 && iasl -we {name}.dsl 2>&1", check=True).stdout
        assert "0 Errors, 0 Warnings" in taken_apart, taken_apart


@pytest.mark.long
def test_persons_at_a_virtio_console(guests: dict[str, UnitVm]) -> None:
    """Who come in turn, each with a terminal of another size, which the guest learns."""
    more = '[console]\nmode = "pty"\n'
    for release, vm in guests.items():
        vm.configure(guest_config(release=release, cmdline="console=ttyS0 quiet vmtest=console", more=more))
        vm.start()
    for vm in guests.values():
        vm.wait_for("beat 1$", BOOT_TIMEOUT_SEC)
        assert re.search(r"the hvc console is at /dev/pts/\d+", vm.journal())
        before = belongings(vm)
        for columns, rows, word in ((100, 30, "one"), (132, 43, "two")):
            command = f"vmservice console {vm.name}"
            shown = vm.host.run(f"python3 /lab/person.py {columns} {rows} {word} {command}", timeout=90, check=True).stdout
            assert f"you typed {word}" in shown
            assert "vmservice: left the hvc console" in shown
            vm.wait_for(f"typed at hvc0: {word}$")
            vm.wait_for(f"hvc0 has {rows} {columns}$")
        assert belongings(vm) == before
        vm.stop()
        assert vm.show("Result") == "success"


@pytest.mark.long
@pytest.mark.parametrize(
    "masked",
    [
        {"trixie": (), "bookworm": ("SPLIT_IRQCHIP",)},
        {"trixie": ("TSC_DEADLINE_TIMER",), "bookworm": ("SIGNAL_MSI", "READONLY_MEM", "COALESCED_PIO")},
    ],
    ids=lambda masked: "-".join(name.lower() for names in masked.values() for name in names),
)
def test_fallbacks(lab: LabHost, masked: dict[str, tuple[str, ...]]) -> None:
    """A host's KVM that lacks what newer ones have, by a seam that no operator can reach; and one that lacks nothing."""
    script = ""
    for release in RELEASES:
        printed = f'[serial]\nmode = "file"\npath = "/tmp/{release}.printed"\n'
        config = guest_config(release=release, cpus=2, cmdline="console=ttyS0 quiet vmtest=poweroff", more=printed)
        lab.run(f"rm -f /tmp/{release}.printed; cat > /tmp/{release}.toml", stdin=config.encode(), check=True)
        command = shlex.join(["python3", "/lab/masked.py", f"/tmp/{release}.toml", str(BOOT_TIMEOUT_SEC), *masked[release]])
        script += f"{command} > /tmp/{release}.shown & "
    lab.run(f"{script} wait", timeout=BOOT_TIMEOUT_SEC + 30)
    for release in RELEASES:
        shown = lab.run(f"cat /tmp/{release}.printed /tmp/{release}.shown", check=True).stdout
        assert "vmservice guest: /init reached" in shown
        assert ", 2 CPUs," in shown
        assert not re.search(r"BUG|WARNING|Oops|Call Trace|ACPI Error|ACPI Exception", shown)
        interrupts = "the IOAPIC of KVM" if masked[release] else "our IOAPIC"
        assert shown.splitlines()[-1] == f"masked: {interrupts}; ended by poweroff"
