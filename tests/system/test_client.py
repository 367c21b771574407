"""The commands that ask VMs, installed, with real units on the real bus."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


@every_release
def test_a_vm_from_start_to_stop(vm: UnitVm) -> None:
    host, name = vm.host, vm.name
    vm.configure(firmware_config(cpus=2))
    host.run(f"systemctl start --no-block {vm.unit} && vmservice wait {name} running --timeout 60", check=True)

    table = host.run("vmservice list", check=True).stdout.splitlines()
    assert table[0].split() == ["NAME", "STATE", "VCPUS", "CPU", "MEMORY", "USED", "LAST-EXIT"]
    (row,) = (line.split() for line in table if line.startswith(f"{name} "))
    assert (row[:3], row[4:6], row[-1]) == ([name, "running", "2/2"], ["64", "MiB"], "-")

    host.run(f"vmservice pause {name}", check=True)
    said = json.loads(host.run(f"vmservice status --json {name}", check=True).stdout)
    pid = vm.main_pid()
    assert (said["state"], said["pid"]) == ("paused", pid)
    unit = said["unit"]
    assert (unit["name"], unit["active_state"], unit["sub_state"], unit["main_pid"]) == (vm.unit, "active", "running", pid)
    assert said["cpu_sec"] > 0
    assert said["cpu_percent"] is not None
    assert said["memory_used"] > 1 << 20
    shown = host.run(f"vmservice status {name}", check=True)
    assert f"{vm.unit}, active (running), main process {pid}" in shown.stdout
    assert "vmservice: VM paused\n" in shown.stdout
    assert shown.stderr == ""

    refused = host.run(f"vmservice pause {name}")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"vmservice: {name} is already paused")
    host.run(f"vmservice resume {name}", check=True)
    host.run(f"systemctl stop --no-block {vm.unit} && vmservice wait {name} shutdown --timeout 60", check=True)
    vm.wait_inactive()
    gone = host.run(f"vmservice status {name}")
    assert gone.returncode == 69
    assert "vmservice: VM shut down (poweroff)\n" in gone.stdout
    assert gone.stderr == f"vmservice: the VM {name} is not running; `systemctl start vm@{name}` starts it\n"


def test_the_journal_of_a_vm(vm: UnitVm) -> None:
    """From a real journal: what was said, what comes, and what an account may not see."""
    vm.start()
    host, name = vm.host, vm.name
    told = host.run(f"vmservice logs {name}", check=True).stdout
    assert "systemd: Start" in told
    assert "vmservice: VM started\n" in told
    assert "serial: beat 1\n" in told
    # Until it has been shown: nobody knows from when on the other one follows.
    follow = f"timeout 50 vmservice logs -f -n 0 {name} | grep --line-buffered -m 1 'VM paused'"
    again = f"while kill -0 $!; do vmservice pause {name}; vmservice resume {name}; done 2> /dev/null > /dev/null"
    assert host.run(f"({follow}) & {again}; wait", check=True).stdout.endswith("VM paused\n")
    refused = host.run(f"runuser -u nobody -- vmservice logs {name}", check=True)
    assert (refused.stdout, refused.stderr) == (
        "",
        "vmservice: this account may not read all of the journal; root and members of group systemd-journal may\n",
    )


def test_everybody_may_look_and_who_may_not_control_is_told(vm: UnitVm) -> None:
    vm.start()
    nobody = "runuser -u nobody -- vmservice"
    assert vm.name in vm.host.run(f"{nobody} list", check=True).stdout
    assert json.loads(vm.host.run(f"{nobody} status --json {vm.name}", check=True).stdout)["state"] == "running"
    vm.host.run(f"{nobody} wait {vm.name} running --timeout 60", check=True)

    refused = vm.host.run(f"{nobody} pause {vm.name}")
    assert refused.returncode == 77
    assert refused.stderr.startswith("vmservice: ")
    assert refused.stderr.count("\n") == 1
    assert vm.state == "running"


def test_a_vm_that_hangs_is_shown_as_such(vm: UnitVm) -> None:
    vm.start()
    vm.host.run(f"kill -STOP {vm.main_pid()}", check=True)
    try:
        listed = vm.host.run("vmservice list", check=True)
        (row,) = (line.split() for line in listed.stdout.splitlines() if line.startswith(f"{vm.name} "))
        assert row[1:3] == ["?", "?"]
        assert f"the VM {vm.name} did not answer within 2 seconds\n" in listed.stdout
        waited = vm.host.run(f"vmservice wait {vm.name} paused --timeout 1")
        assert (waited.returncode, waited.stderr.count("it does not answer")) == (75, 1)
    finally:
        vm.host.run(f"kill -CONT {vm.main_pid()}", check=True)
    assert vm.state == "running"


@every_release
def test_all_there_is(vm: UnitVm) -> None:
    """What failed says why, what is configured is there, what stops and starts is shown so, and nobody is told to start what
    cannot be."""
    host = vm.host
    others = [UnitVm(host, f"{vm.name}-{number}") for number in (2, 10, 9)]
    panicked, broken, simulated = others
    try:
        panicked.configure(firmware_config("panic", service='on_panic = "exit"'))
        host.run(f"mkdir -p /run/systemd/system/{panicked.unit}.d", check=True)
        host.run(
            f"printf '[Service]\\nRestartForceExitStatus=\\nRestart=no\\n' > /run/systemd/system/{panicked.unit}.d/once.conf"
        )
        broken.configure("[cpus]\nboot = many\n")
        host.run(f"systemctl daemon-reload; systemctl start {panicked.unit}; systemctl start {broken.unit}")
        panicked.wait_inactive()
        # Without a unit, and without a configuration of its own.
        host.run(
            f"systemd-run --unit=sim-{vm.name} vmservice run --sim --config /etc/vmservice/{vm.name}.toml {simulated.name}",
            check=True,
        )
        host.run(f"vmservice wait {simulated.name} running --timeout 60", check=True)
        # A guest that takes no notice of its power button.
        vm.configure(firmware_config("deaf"))
        vm.start()
        host.run(f"systemctl stop --no-block {vm.unit}", check=True)
        host.run(f"timeout 50 sh -c 'until systemctl show -P ActiveState {vm.unit} | grep -q deactivating; do sleep 0.1; done'")

        lines = host.run("vmservice list --all", check=True).stdout.splitlines()
        # Other tests may have left theirs.
        rows = {line.split()[0]: line for line in lines if line.startswith((f"{vm.name} ", f"{vm.name}-"))}
        assert list(rows) == [vm.name, panicked.name, simulated.name, broken.name], lines
        assert rows[vm.name].split()[1] == "stopping"
        assert rows[panicked.name].split()[1] == "failed"
        assert rows[panicked.name].endswith("(exit status 134)")
        assert rows[simulated.name].split()[1] == "running"
        assert rows[broken.name].split()[1] == "failed"
        assert f"/etc/vmservice/{broken.name}.toml" in rows[broken.name]
        assert rows[broken.name].endswith("(exit status 78)")
        top = json.loads(host.run("vmservice top --once --json --delay 0.5", check=True).stdout)
        found = {row["name"]: row for row in top}
        assert found[vm.name]["cpu_percent"] is not None
        assert found[vm.name]["memory_used"] > 1 << 20
        assert (found[vm.name]["condition"], found[simulated.name]["condition"]) == ("stopping", "running")
        said = host.run(f"vmservice status {panicked.name}")
        assert said.returncode == 69
        assert "  Reason: " in said.stdout
        missing = host.run("vmservice status nosuch")
        assert (missing.returncode, missing.stdout) == (69, "")
        path = "/etc/vmservice/nosuch.toml"
        sentence = f"the VM nosuch does not exist: it does not run, and there is no {path}"
        assert missing.stderr == f"vmservice: {sentence}\n"
        assert "nosuch" not in host.run("vmservice list --all", check=True).stdout
    finally:
        host.run(f"systemctl stop sim-{vm.name}; rm -r /run/systemd/system/{panicked.unit}.d; systemctl daemon-reload")
        for other in others:
            other.remove()


@pytest.fixture
def alice(container: Container) -> Iterator[str]:
    """The start of a command line that runs as alice, in her session."""
    container.run("usermod --append --groups kvm alice && loginctl enable-linger alice", check=True)
    container.run("timeout 50 sh -c 'until [ -S /run/user/1000/bus ]; do sleep 0.1; done'", check=True)
    yield "runuser --user alice -- env XDG_RUNTIME_DIR=/run/user/1000"
    container.run("loginctl disable-linger alice; loginctl terminate-user alice; rm -rf /home/alice/.config", check=True)


@every_release
def test_a_users_own_vm(container: Container, alice: str) -> None:
    container.run(f"{alice} mkdir -p /home/alice/.config/vmservice", check=True)
    container.run(f"{alice} tee /home/alice/.config/vmservice/mine.toml", stdin=firmware_config().encode(), check=True)
    missing = container.run(f"{alice} vmservice pause --user mine")
    assert missing.returncode == 69
    assert "`systemctl --user start vm@mine` starts it" in missing.stderr

    container.run(f"{alice} systemctl --user start vm@mine", check=True)
    container.run(f"{alice} vmservice pause --user mine", check=True)
    assert "mine  paused" in container.run(f"{alice} vmservice list --user", check=True).stdout
    assert "vm@mine.service, active (running)" in container.run(f"{alice} vmservice status --user mine", check=True).stdout
    container.run("usermod --append --groups systemd-journal alice", check=True)
    assert "vmservice: VM paused\n" in container.run(f"{alice} vmservice --user logs mine", check=True).stdout
    container.run(f"{alice} systemctl --user stop vm@mine && {alice} vmservice wait --user mine shutdown", check=True)


def test_the_mock_is_installed_where_the_documentation_says(container: Container) -> None:
    files = container.run("dpkg -L vmservice", check=True).stdout.split()
    assert "/usr/lib/python3/dist-packages/vmservice/client/dbusmock_template.py" in files
