"""A console at a socket under systemd: one of the VM's own, and one that systemd holds and starts the VM for."""

from __future__ import annotations

import shlex

from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

# A program, not a person: connects, types a letter that no beat has, and leaves when the guest has echoed it.
TALK = """
import socket, sys
letter = sys.argv[2].encode()
client = socket.socket(socket.AF_UNIX)
client.settimeout(30)
client.connect(sys.argv[1])
seen = b""
sent = False
while letter not in seen:
    data = client.recv(4096)
    if not data:
        sys.exit(f"the console was closed after {seen!r}")
    seen += data
    if not sent and b"beat" in seen:
        client.sendall(letter)
        sent = True
print(seen.decode())
"""


def talk(host: Container, path: str, letter: str) -> str:
    return host.run(shlex.join(["python3", "-c", TALK, path, letter]), check=True).stdout


def configure(vm: UnitVm, more: str = "") -> None:
    text = (
        firmware_config().replace('mode = "journal"', 'mode = "socket"').replace('size = "64M"', 'size = "64M"\nshared = true')
    )
    vm.configure(text + more)


def test_a_socket_in_the_units_directory(container: Container, vm: UnitVm) -> None:
    """And that of a port beside it, under the sandbox of the unit."""
    configure(vm, '[[port]]\nname = "org.test.agent.0"\n')
    vm.start()
    directory = f"/run/vmservice/{vm.name}"
    for letter in ("X", "Y"):
        assert "beat" in talk(container, f"{directory}/serial.sock", letter)
    listed = container.run(f"stat --format='%n %a %U %F' {directory}/*", check=True).stdout
    assert listed == "".join(f"{directory}/{name}.sock 660 vmservice socket\n" for name in ("org.test.agent.0", "serial"))
    vm.stop()
    assert vm.show("Result") == "success"
    assert container.run(f"test -e {directory}").returncode == 1


@every_release
def test_systemd_holds_the_socket_and_starts_the_vm_for_who_comes(container: Container, vm: UnitVm) -> None:
    configure(vm)
    unit, path = f"vm-console@{vm.name}.socket", f"/run/vmservice-console/{vm.name}"
    container.run(f"systemctl start {unit}", check=True)
    try:
        assert vm.show("ActiveState") == "inactive"
        assert container.run(f"stat --format='%a %U' {path}", check=True).stdout == "600 root\n"
        assert "vmservice heartbeat" in talk(container, path, "X")
        assert vm.state == "running"
        assert f"the serial console is at the socket {path}" in vm.journal()
        assert "Y" in talk(container, path, "Y")
        vm.stop()
        assert vm.show("Result") == "success"
        # The socket is systemd's: it outlives the VM, and the next who comes starts it again.
        assert container.run(f"systemctl is-active {unit}").stdout == "active\n"
        assert "vmservice heartbeat" in talk(container, path, "Z")
        vm.stop()
    finally:
        container.run(f"systemctl stop {unit}", check=True)
    assert container.run(f"test -e {path}").returncode == 1
