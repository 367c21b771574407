"""Credentials of the configuration and of the unit, from the host's systemd into the guest's memory, and nowhere else."""

from __future__ import annotations

import base64
import mmap
import shlex
from collections.abc import Iterator

import pytest
from support.container import Container
from support.images import elf, segment
from support.releases import every_release
from support.smbios_walk import find_tables, walk
from support.unit_vm import UnitVm, firmware_config

from vmservice.memory.guest_memory import GuestMemory, Region

HALT = elf([segment(0x100000, bytes.fromhex("f4 ebfd"))], entry=0x100000)
SECRETS = ("own-s3cret", "file-s3cret", "loaded-s3cret", "sealed-s3cret")


@pytest.fixture
def guest(vm: UnitVm, container: Container) -> Iterator[UnitVm]:
    """A VM whose guest is a kernel that halts, with its memory in a file; the account may not read /root."""
    (container.shared / "halt.elf").write_bytes(HALT)
    folder = f"/var/lib/vmservice/{vm.name}"
    vm.configure(
        '[kernel]\npath = "/lab/halt.elf"\n'
        f'[memory]\nsize = "16M"\nfile = "{folder}/memory"\n'
        '[serial]\nmode = "off"\n[service]\nshutdown_timeout = 0\n'
        "[credentials]\n"
        f'"own.text" = "{SECRETS[0]}"\n"both" = "the file has it too"\n'
        f'"own.file" = {{ file = "/etc/vmservice/{vm.name}.key" }}\n'
    )
    script = (
        f"install -d -o vmservice -m 700 {folder}; install -o vmservice -m 600 /dev/null {folder}/memory;"
        f" printf %s {SECRETS[1]} > /etc/vmservice/{vm.name}.key; chown vmservice /etc/vmservice/{vm.name}.key;"
        f" chmod 400 /etc/vmservice/{vm.name}.key; printf %s {SECRETS[2]} > /root/loaded; chmod 400 /root/loaded"
    )
    vm.host.run(script, check=True)
    yield vm
    vm.host.run(f"systemctl stop {vm.unit}; rm -rf {folder} /run/systemd/system/{vm.unit}.d; systemctl daemon-reload")


def drop_in(vm: UnitVm) -> None:
    """What `systemctl edit` would write, with a credential that only this host can open."""
    sealed = f"printf %s {SECRETS[3]} | systemd-creds encrypt --with-key=host --name=sealed --pretty - -"
    folder = f"/run/systemd/system/{vm.unit}.d"
    text = "[Service]\\nLoadCredential=loaded:/root/loaded\\nSetCredential=both:the unit wins\\n"
    vm.host.run(
        f"mkdir -p {folder} && (printf {shlex.quote(text)}; {sealed}) > {folder}/credentials.conf && systemctl daemon-reload",
        check=True,
    )


def in_guest_memory(vm: UnitVm, container: Container) -> dict[str, bytes]:
    path = f"/proc/{container.leader}/root/var/lib/vmservice/{vm.name}/memory"
    with open(path, "rb") as file:
        mapping = mmap.mmap(-1, 1 << 20)
        mapping[:] = file.read(1 << 20)
    memory = GuestMemory([Region(0, mapping)])
    try:
        strings = [string for one in walk(find_tables(memory)[1]) if one.kind == 11 for string in one.strings]
    finally:
        memory.close()
    pairs = (string.removeprefix(b"io.systemd.credential.binary:").split(b"=", 1) for string in strings)
    return {name.decode(): base64.b64decode(value) for name, value in pairs}


@every_release
def test_all_of_them_reach_the_guest_and_nobody_else(guest: UnitVm, container: Container) -> None:
    drop_in(guest)
    guest.start()
    expected = {
        "both": b"the unit wins",
        "loaded": SECRETS[2].encode(),
        "sealed": SECRETS[3].encode(),
        "own.text": SECRETS[0].encode(),
        "own.file": SECRETS[1].encode(),
    }
    assert in_guest_memory(guest, container) == expected
    guest.call("Reboot")
    assert in_guest_memory(guest, container) == expected

    pid = guest.main_pid()
    looks = (
        f"systemctl kill --kill-whom=main --signal=QUIT {guest.unit}; sleep 1; journalctl --sync; journalctl --output=export",
        f"systemctl status --no-pager {guest.unit}; systemctl show {guest.unit}",
        f"busctl introspect --full {guest.bus_name} /org/vmservice/VM1",
        f"busctl call {guest.bus_name} /org/vmservice/VM1 org.freedesktop.DBus.Properties GetAll s org.vmservice.VM1",
        f"vmservice status {guest.name}; vmservice status --json {guest.name}; vmservice check-config {guest.name} 2>&1",
        f"tr '\\0' '\\n' < /proc/{pid}/environ; tr '\\0' '\\n' < /proc/{pid}/cmdline",
        f"grep -rl s3cret /run/vmservice /var/log/vmservice /var/lib/vmservice/{guest.name} --exclude=memory",
    )
    said = "".join(guest.host.run(look).stdout for look in looks)
    assert "the credential both of" in said, "names are no secret"
    for secret in SECRETS:
        assert secret not in said
        assert base64.b64encode(secret.encode()).decode() not in said


@every_release
def test_a_file_that_the_account_may_not_read(guest: UnitVm) -> None:
    guest.host.run(f"chown root /etc/vmservice/{guest.name}.key", check=True)
    file = f"/etc/vmservice/{guest.name}.key"
    place = f'/etc/vmservice/{guest.name}.toml: credentials."own.file": '
    checked = guest.host.run(f"vmservice check-config {guest.name}")
    assert checked.returncode == 78
    assert f'{place}file is "{file}", which the account vmservice of {guest.unit} may not read' in checked.stderr
    assert "or use LoadCredential= in a drop-in of the unit instead" in checked.stderr
    assert guest.host.run(f"systemctl start {guest.unit}").returncode != 0
    guest.wait_inactive()
    assert '.key", which is not readable for the account vmservice' in guest.journal()
    assert guest.show("ExecMainStatus") == "78"


@every_release
def test_no_other_vm_sees_those_of_the_unit(guest: UnitVm) -> None:
    """Of the same account, and looking in its own sandbox, as code that has taken it over would."""
    drop_in(guest)
    guest.start()
    other = UnitVm(guest.host, f"{guest.name}-other")
    other.configure(firmware_config("idle"))
    try:
        other.start()
        enter = "nsenter --target {} --mount --setuid $(id -u vmservice) --setgid $(id -g vmservice) ls -R /run/credentials"
        own = guest.host.run(enter.format(guest.main_pid()), check=True).stdout
        assert f"{guest.unit}" in own
        assert "loaded" in own
        assert guest.unit not in guest.host.run(enter.format(other.main_pid())).stdout
    finally:
        other.remove()
