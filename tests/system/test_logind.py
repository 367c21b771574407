"""The host sleeps, by the real logind: VMs are paused before and go on after. Only the kernel's part is played by a `sleep`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

SLEEP_SEC = 3

# What logind looks at before it calls a host able to sleep; the container's /sys is memory of its own.
_ABLE_TO_SLEEP = f"""
set -e
mount -o remount,rw /sys
mkdir /sys/power
echo 'freeze mem' > /sys/power/state
echo '[s2idle] deep' > /sys/power/mem_sleep
mkdir -p /run/systemd/system/systemd-logind.service.d /run/systemd/system/systemd-suspend.service.d
printf '[Service]\\nReadWritePaths=/sys/power\\n' > /run/systemd/system/systemd-logind.service.d/test.conf
printf '[Service]\\nExecStart=\\nExecStart=sleep {SLEEP_SEC}\\n' > /run/systemd/system/systemd-suspend.service.d/test.conf
systemctl daemon-reload
systemctl restart systemd-logind
"""
_SUSPEND = (
    "busctl call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager SuspendWithFlags t 0"
    " && timeout 50 sh -c 'until systemctl is-active --quiet systemd-suspend"
    " || [ $(systemctl show -P ActiveState systemd-suspend) = activating ]; do sleep 0.05; done'"
)
_AWAKE = "timeout 50 sh -c 'while [ $(systemctl show -P ActiveState systemd-suspend) != inactive ]; do sleep 0.05; done'"


def locks(host: Container) -> list[str]:
    """Who has a lock on the host's sleep."""
    listed = host.run("systemd-inhibit --list --no-legend", check=True).stdout
    return sorted(line.split()[1] for line in listed.splitlines() if line.startswith("vmservice "))


def wait_locks(host: Container, count: int) -> None:
    counted = "systemd-inhibit --list --no-legend | grep -c '^vmservice '"
    host.run(f'timeout 50 sh -c "until [ \\$({counted}) = {count} ]; do sleep 0.1; done"', check=True)


@pytest.fixture
def sleepy(own_container: Container) -> Iterator[Container]:
    own_container.run(_ABLE_TO_SLEEP, check=True)
    yield own_container


def started(host: Container, name: str) -> UnitVm:
    vm = UnitVm(host, name)
    vm.configure(firmware_config())
    vm.start()
    vm.wait_for("beat 1")
    return vm


@every_release
def test_a_host_sleeps_and_wakes(sleepy: Container) -> None:
    running, paused = started(sleepy, "running"), started(sleepy, "paused")
    paused.call("Pause")
    wait_locks(sleepy, 2)
    assert locks(sleepy) == ["paused", "running"]

    for night in (1, 2):
        sleepy.run(_SUSPEND, check=True)
        assert (running.state, paused.state) == ("paused", "paused")
        assert locks(sleepy) == []
        sleepy.run(_AWAKE, check=True)
        wait_locks(sleepy, 2)
        assert (running.state, paused.state) == ("running", "paused")
        assert running.journal().count("the host is about to sleep") == night
    assert "Delay lock is active" not in sleepy.run("journalctl --unit=systemd-logind --output=cat").stdout
    beats = running.journal().count("beat")
    running.wait_for(f"beat {beats + 2}$")


def test_the_lock_outlives_a_restart_of_logind_and_goes_with_the_vm(sleepy: Container) -> None:
    vm = started(sleepy, "demo")
    wait_locks(sleepy, 1)
    sleepy.run("systemctl restart systemd-logind", check=True)
    wait_locks(sleepy, 1)
    vm.host.run(f"kill -KILL {vm.main_pid()} && systemctl stop {vm.unit}", check=True)
    wait_locks(sleepy, 0)


def test_a_vm_that_may_not_delay_sleep_is_paused_all_the_same(sleepy: Container) -> None:
    """Without polkit logind lets only root."""
    sleepy.run("systemctl mask --now --runtime polkit.service", check=True)
    vm = started(sleepy, "demo")
    vm.wait_for("systemd-logind gives no sleep lock")
    sleepy.run(_SUSPEND, check=True)
    vm.host.run(
        "timeout 3 sh -c 'until journalctl --unit=vm@demo --output=cat | grep -q \"about to sleep\"; do sleep 0.1; done'"
    )
    assert vm.state == "paused"
    sleepy.run(_AWAKE, check=True)
    vm.wait_for("VM resumed")
    assert vm.journal().count("gives no sleep lock") == 1
