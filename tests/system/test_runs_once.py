"""A VM runs once, whoever starts it and however: unit or by hand, with a bus or without, of the system or of a user."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import Host, UnitVm, firmware_config

BY_HAND = "systemd-run --quiet --collect --unit=by-hand"
ACCOUNT = "--uid=vmservice --gid=vmservice --property=SupplementaryGroups=kvm"


@pytest.fixture
def alice(container: Container) -> Iterator[str]:
    """The start of a command line that runs as alice, in her session, with a VM called mine."""
    container.run("usermod --append --groups kvm alice && loginctl enable-linger alice", check=True)
    container.run("timeout 50 sh -c 'until [ -S /run/user/1000/bus ]; do sleep 0.1; done'", check=True)
    alice = "runuser --user alice -- env XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus"
    container.run(f"{alice} mkdir -p /home/alice/.config/vmservice", check=True)
    container.run(f"{alice} tee /home/alice/.config/vmservice/mine.toml", stdin=firmware_config().encode(), check=True)
    yield alice
    container.run("loginctl disable-linger alice; loginctl terminate-user alice; rm -rf /home/alice/.config", check=True)


@contextlib.contextmanager
def by_hand(host: Host, options: str, command: str, says: str) -> Iterator[None]:
    """`command` in a session of its own, as from another shell, until its VM runs."""
    host.run(f"{BY_HAND} {options} {command}", check=True)
    try:
        found = f"journalctl --unit=by-hand --output=cat | grep -q {shlex.quote(says)}"
        host.run(f"timeout 50 sh -c {shlex.quote(f'until {found}; do sleep 0.1; done')}", check=True)
        yield
    finally:
        host.run("systemctl kill --signal=KILL by-hand; systemctl stop by-hand; journalctl --rotate --vacuum-time=1s")


@every_release
@pytest.mark.parametrize("bus", ["system", "none"])
@pytest.mark.parametrize("who", ["", "runuser -u vmservice -g vmservice -G kvm --"], ids=["root", "the account"])
def test_by_hand_beside_the_unit(vm: UnitVm, bus: str, who: str) -> None:
    vm.start()
    vm.wait_for("beat 1")
    again = vm.host.run(f"timeout 20 {who} vmservice run --bus {bus} {vm.name}")
    assert again.returncode == 69, again.stderr
    assert f"the VM {vm.name} runs already" in again.stderr
    assert "beat" not in again.stdout + again.stderr, "a second guest ran"
    assert vm.state == "running"


@every_release
@pytest.mark.parametrize("options", ["", ACCOUNT], ids=["root", "the account"])
def test_the_unit_beside_one_by_hand_is_refused_each_time(vm: UnitVm, options: str) -> None:
    """Again and again: systemd removes the unit's runtime directory after each start that fails."""
    vm.host.run(f"install -d -o vmservice -m 700 /var/lib/vmservice/{vm.name}" if options else "true", check=True)
    with by_hand(vm.host, options, f"vmservice run --bus none {vm.name}", "VM started"):
        for _ in range(3):
            assert vm.host.run(f"systemctl start {vm.unit}").returncode != 0
            assert vm.show("ExecMainStatus") == "69"
            assert f"the VM {vm.name} runs already" in vm.show("StatusText")
            assert vm.show("NRestarts") == "0"
        assert "beat" not in vm.journal(f"SYSLOG_IDENTIFIER=vm-{vm.name}", f"_SYSTEMD_UNIT={vm.unit}")
    vm.start()
    assert vm.state == "running"


@every_release
def test_a_users_vm_by_hand_beside_their_unit(container: Container, alice: str) -> None:
    container.run(f"{alice} systemctl --user start vm@mine", check=True)
    for bus in ("session", "none --config /home/alice/.config/vmservice/mine.toml"):
        again = container.run(f"{alice} timeout 20 vmservice run --bus {bus} mine")
        assert again.returncode == 69, again.stderr
        assert "the VM mine runs already" in again.stderr
    container.run(f"{alice} systemctl --user stop vm@mine", check=True)
