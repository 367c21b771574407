"""The vsock at which a guest says READY=1: made as root, kept by systemd, and passed to a VMM that may open none itself."""

from __future__ import annotations

import json
import shlex

from support.releases import every_release
from support.unit_vm import UnitVm

# In the VMM's place, under its sandbox: what it has been passed, and what it may make.
PROBE = """\
import json, os, signal, socket
from systemd.daemon import notify
names = os.environ.get("LISTEN_FDNAMES", "").split(":")
passed = socket.socket(fileno=3)
try:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    own = 0
except OSError as error:
    own = error.errno
listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
print("passed " + json.dumps([names, passed.family.name, passed.getsockname()[1], listens, own]), flush=True)
notify("READY=1")
signal.pause()
"""
EAFNOSUPPORT = 97


def passed(vm: UnitVm, starts: int) -> list[object]:
    """What the VMM of that start was passed."""
    vm.wait_for("passed .*")
    lines = [line for line in vm.journal().splitlines() if line.startswith("passed ")]
    assert len(lines) == starts
    found = json.loads(lines[-1].removeprefix("passed "))
    assert isinstance(found, list)
    return found


@every_release
def test_systemd_passes_one_socket_at_each_start(vm: UnitVm) -> None:
    vm.configure('[kernel]\npath = "/lab/idle.bin"\n[vsock]\n[service]\nready = "guest"\n')
    folder = f"/run/systemd/system/{vm.unit}.d"
    probe = f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 {folder}/probe.py\nRestartSec=0\n"
    vm.host.run(
        f"mkdir -p {folder} && printf %s {shlex.quote(PROBE)} > {folder}/probe.py && cat > {folder}/probe.conf &&"
        " systemctl daemon-reload",
        stdin=probe.encode(),
        check=True,
    )
    try:
        vm.start()
        names, family, port, listens, own = passed(vm, 1)
        assert (names, family, listens, own) == (["vsock/notify"], "AF_VSOCK", 1, EAFNOSUPPORT)
        assert isinstance(port, int)
        assert port >= 1024
        vm.restart()
        assert passed(vm, 2)[0] == ["vsock/notify"]
        vm.host.run(f"systemctl kill --signal=KILL {vm.unit}", check=True)
        count = f"journalctl --unit={vm.unit} --output=cat | grep -c ^passed"
        vm.host.run(f"timeout 50 sh -c 'until [ $({count}) = 3 ]; do sleep 0.1; done'", check=True)
        assert passed(vm, 3)[0] == ["vsock/notify"], "that of the start before is dropped"
    finally:
        vm.host.run(f"systemctl stop {vm.unit}; rm -r {folder}; systemctl daemon-reload")
