"""A console that one can type at, with a log: under the unit's sandbox, and over a rotation of its file."""

from __future__ import annotations

import re

from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

ROTATE = "logrotate --force /etc/logrotate.d/vmservice"


def configure(vm: UnitVm, serial: str) -> None:
    vm.configure(firmware_config().replace('mode = "journal"', serial))


@every_release
def test_it_is_typed_at_and_in_the_journal(vm: UnitVm) -> None:
    """By the command, through a pipe: what the guest echoes is at both ends."""
    configure(vm, 'mode = "socket"\nlog = "journal"')
    vm.start()
    said = vm.host.run(f"(echo X; sleep 1) | vmservice console {vm.name}", check=True)
    assert "X" in said.stdout
    assert said.stderr == ""
    vm.wait_for("X")
    assert "vmservice heartbeat" in vm.journal("--output=cat", f"SYSLOG_IDENTIFIER=vm-{vm.name}", "VM_CONSOLE=serial")
    vm.stop()
    assert vm.show("Result") == "success"


@every_release
def test_a_rotation_loses_nothing(vm: UnitVm, release: str) -> None:
    """Twice, so that the first one is packed. The second finds a wrong configuration, which is no reason against it."""
    folder = f"/var/log/vmservice/{vm.name}"
    serial = f'mode = "socket"\nlog = "file"\nlog_path = "{folder}/console.log"'
    configure(vm, serial)
    vm.start()
    pid = vm.main_pid()
    for wrong in ("", "\nlog = 7"):
        grown(vm, f"{folder}/console.log")
        configure(vm, serial + wrong)
        rotated = vm.host.run(ROTATE)
        assert (rotated.returncode, rotated.stderr) == (0, "")
        vm.host.run(f"timeout 60 sh -c 'until test -e {folder}/console.log; do sleep 0.1; done'", check=True)
        assert vm.host.run(f"readlink /proc/{pid}/fd/*", check=True).stdout.count(f"{folder}/console.log\n") == 1
        grown(vm, f"{folder}/console.log")
    configure(vm, serial)
    vm.stop()
    listed = vm.host.run(f"stat --format='%n %a %U' {folder}/*", check=True).stdout
    assert listed == "".join(f"{folder}/console.log{suffix} 600 vmservice\n" for suffix in ("", ".1", ".2.gz"))
    printed = vm.host.run(f"cd {folder}; gunzip -c console.log.2.gz; cat console.log.1 console.log", check=True).stdout
    beats = [int(number) for number in re.findall(r"^beat (\d+)", printed, re.MULTILINE)]
    assert len(beats) > 3
    assert beats == list(range(1, len(beats) + 1))


@every_release
def test_a_vm_that_does_not_answer_holds_up_no_rotation(vm: UnitVm) -> None:
    """It opens its file when it can; systemd would wait for that, for 90 seconds."""
    file = f"/var/log/vmservice/{vm.name}/console.log"
    configure(vm, f'mode = "socket"\nlog = "file"\nlog_path = "{file}"')
    vm.start()
    grown(vm, file)
    # Not SIGSTOP: systemd sends SIGCONT behind the signal of a reload.
    freeze = f"> /sys/fs/cgroup{vm.show('ControlGroup')}/cgroup.freeze"
    vm.host.run(f"echo 1 {freeze}", check=True)
    try:
        vm.host.run(f"timeout 60 {ROTATE}", check=True, timeout=90)
        assert vm.host.run(f"test -e {file}").returncode == 1
    finally:
        vm.host.run(f"echo 0 {freeze}", check=True)
    grown(vm, file)
    # A stop ends the program that reloads, and the unit's result would be that.
    reloaded = f"[ $(systemctl show -P SubState {vm.unit}) = running ]"
    vm.host.run(f"timeout 60 sh -c 'until {reloaded}; do sleep 0.1; done'", check=True)
    vm.stop()
    assert vm.show("Result") == "success"


def grown(vm: UnitVm, file: str) -> None:
    """Returns when the guest has written a line to `file`."""
    vm.host.run(f"timeout 60 sh -c 'until grep -q ^beat {file}; do sleep 0.1; done'", check=True)


def test_a_folder_of_a_vm_is_no_way_to_another_file(vm: UnitVm) -> None:
    """Whoever has taken a VMM over may put anything there: nothing outside is rotated, read or given away."""
    folder = f"/var/log/vmservice/{vm.name}"
    configure(vm, f'mode = "file"\npath = "{folder}/console.log"')
    vm.start()
    grown(vm, f"{folder}/console.log")
    vm.host.run("install -m 600 /dev/null /root/secret.log && echo secret > /root/secret.log", check=True)
    vm.host.run(f"ln -s /root/secret.log {folder}/link.log && mkfifo {folder}/fifo.log", check=True)
    try:
        vm.host.run(ROTATE, timeout=120)
        listed = vm.host.run("ls -l /root/secret.log*; cat /root/secret.log", check=True).stdout
        assert listed.startswith("-rw------- 1 root root 7 ")
        assert listed.endswith("/root/secret.log\nsecret\n")
        assert vm.host.run(f"grep -r secret {folder}").returncode == 1
    finally:
        vm.host.run(f"rm -rf /root/secret.log {folder}/link.log {folder}/fifo.log", check=True)


def test_a_socket_of_systemd_comes_before_the_vm(vm: UnitVm) -> None:
    """systemd refuses it for a VM that runs, in the words that the documents quote; the VM has its own until then."""
    configure(vm, 'mode = "socket"\nlog = "journal"')
    unit = f"vm-console@{vm.name}.socket"
    vm.start()
    assert vm.host.run(f"systemctl start {unit}").returncode == 1
    vm.host.run("journalctl --sync", check=True)
    words = vm.host.run(f"journalctl --no-pager --output=cat --unit={unit}", check=True).stdout
    assert f"Socket service {vm.unit} already active, refusing." in words
    assert vm.state == "running"
    vm.stop()
    vm.host.run(f"systemctl start {unit}", check=True)
    try:
        vm.start()
        vm.wait_for(f"the serial console is at the socket /run/vmservice-console/{vm.name}")
    finally:
        vm.stop()
        vm.host.run(f"systemctl stop {unit}; systemctl reset-failed {unit}")
