"""Memory that takes longer than the unit's timeouts, to be made or to be given back: there is time while it goes on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

TIMEOUT_SEC = 4


@pytest.fixture
def slow(vm: UnitVm) -> Iterator[UnitVm]:
    """A VM whose 64 MiB take 8 seconds each way, with a unit that waits half as long."""
    folder = f"/run/systemd/system/{vm.unit}.d"
    limits = f"TimeoutStartSec={TIMEOUT_SEC}\nTimeoutStopSec={TIMEOUT_SEC}\nRestart=no\n"
    lines = f"[Service]\nExecStart=\nExecStart=/lab/slow_memory.py run %i\n{limits}"
    vm.host.run(f"mkdir -p {folder} && cat > {folder}/slow.conf && systemctl daemon-reload", check=True, stdin=lines.encode())
    vm.configure(firmware_config().replace('size = "64M"', 'size = "64M"\nprefault = true'))
    yield vm
    vm.host.run(f"rm -r {folder}; systemctl daemon-reload", check=True)


@every_release
def test_a_start_and_a_stop_last_as_long_as_they_go_on(slow: UnitVm) -> None:
    said = (
        f'until systemctl show -P StatusText {slow.unit} | grep -qx "starting: the guest\'s memory is being made"; do :; done'
    )
    slow.host.run(f"systemctl start --no-block {slow.unit}; timeout 50 sh -c {shlex.quote(said)}", check=True)
    slow.start(timeout=60)
    slow.wait_for("beat 1")
    assert slow.state == "running"
    slow.stop(timeout=60)
    assert slow.show("Result") == "success"
    assert "timed out" not in slow.journal()


def test_work_that_stands_still_is_not_waited_for(slow: UnitVm) -> None:
    slow.host.run(f"mkdir -p /var/lib/vmservice/{slow.name} && touch /var/lib/vmservice/{slow.name}/stuck", check=True)
    assert slow.host.run(f"systemctl start {slow.unit}", timeout=120).returncode != 0
    assert slow.show("Result") == "timeout"
