"""Ports of a real Linux guest: found by name, bytes both ways, and no byte lost to a reader who takes their time."""

from __future__ import annotations

import shlex

from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.prepare import guest_config
from support.unit_vm import UnitVm

STREAM_BYTES = 600_000

# In the lab's host: types at the guest's serial console, at which a shell takes commands, and is at the other end of a port.
CONVERSATION = r"""
import socket, sys

def connect(label):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(300)
    client.connect(f"{sys.argv[1]}/{label}.sock")
    return client

shown = b""
def wait(text):
    global shown
    while text not in shown:
        data = serial.recv(65536)
        assert data, shown
        shown += data
    shown = shown.partition(text)[2]

def run(command):
    serial.sendall(command.encode() + b"\n")

def read(size):
    data = b""
    while len(data) < size:
        data += agent.recv(65536)
        assert data
    return data

BYTES = int(sys.argv[2])
FIND = "port() { echo /dev/$(grep -lx $1 /sys/class/virtio-ports/*/name | cut -d/ -f5); }; "
serial = connect("serial")
wait(b"guest: ready")
run(FIND + "head -c 20 $(port org.test.agent.0); echo 'end' 'of file'")
wait(b"end of file")
agent = connect("org.test.agent.0")
agent.sendall(b"hello\n")
run(FIND + "exec 5<>$(port org.test.agent.0);"
    f" read -r line <&5; echo the guest has $line >&5; head -c {BYTES} /dev/zero >&5 && echo all 'is written'")
assert read(20) == b"the guest has hello\n"
# Nobody reads now: the guest's writer waits, and the guest does not.
for _ in range(3):
    wait(b"beat ")
    assert b"all is written" not in shown
assert read(BYTES) == bytes(BYTES)
wait(b"all is written")
run(FIND + "echo to the journal > $(port log); echo at hvc0 > /dev/hvc0; echo 'it is' said")
wait(b"it is said")
print("as it should be")
"""


def test_ports(guests: dict[str, UnitVm]) -> None:
    ports = '[[port]]\nname = "org.test.agent.0"\n[[port]]\nname = "log"\nmode = "journal"\n'
    more = f'[serial]\nmode = "socket"\nlog = "journal"\n{ports}[[port]]\nname = "tty"\nmode = "journal"\nconsole = true\n'
    for release, vm in guests.items():
        vm.configure(guest_config(release=release, memory_keys="shared = true\n", more=more))
        vm.start()
    for vm in guests.values():
        command = shlex.join(["python3", "-c", CONVERSATION, f"/run/vmservice/{vm.name}", str(STREAM_BYTES)])
        said = vm.host.run(command, timeout=BOOT_TIMEOUT_SEC + 60)
        assert said.stdout == "as it should be\n", said.stdout + said.stderr
        assert vm.journal("--output=cat", "VM_CONSOLE=log") == "to the journal\n"
        assert vm.journal("--output=cat", "VM_CONSOLE=tty") == "at hvc0\n"
        # What was typed at and read from the socket is in the journal, too; a program talks to it by the command.
        printed = vm.journal("--output=cat", "VM_CONSOLE=serial")
        assert ("guest: ready" in printed, "it is said" in printed) == (True, True), printed
        typed = "echo typed 'by a program'"
        piped = vm.host.run(f"(echo {shlex.quote(typed)}; sleep 5) | vmservice console {vm.name}", timeout=60)
        assert "typed by a program" in piped.stdout, piped.stdout + piped.stderr
        vm.wait_for("typed by a program")
        vm.stop()
        assert vm.show("Result") == "success"
