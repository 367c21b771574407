"""The user instance: `systemctl --user` of a plain account, its session bus and its configuration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import OBJECT, firmware_config
from support.uplink import UPLINK


@pytest.fixture
def alice(container: Container) -> Iterator[str]:
    """The start of a command line that runs as alice, in her session."""
    container.run("usermod --append --groups kvm alice && loginctl enable-linger alice", check=True)
    container.run("timeout 50 sh -c 'until [ -S /run/user/1000/bus ]; do sleep 0.1; done'", check=True)
    yield "runuser --user alice -- env XDG_RUNTIME_DIR=/run/user/1000 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus"
    container.run("loginctl disable-linger alice; loginctl terminate-user alice; rm -rf /home/alice/.config", check=True)
    # The next one's bus is not to be taken for this one's, which is on its way out.
    container.run("timeout 50 sh -c 'while [ -e /run/user/1000 ]; do sleep 0.1; done'", check=True)
    # Whoever comes next is not to find the bus of this session.
    container.run("timeout 50 sh -c 'while [ -e /run/user/1000 ]; do sleep 0.1; done'", check=True)


@every_release
def test_a_user_has_a_disk_in_qcow2(container: Container, alice: str) -> None:
    disk = '[[disk]]\nname = "root"\nformat = "qcow2"\npath = "disk.qcow2"\n'
    container.run(f"{alice} mkdir -p /home/alice/.config/vmservice", check=True)
    container.run(f"{alice} qemu-img create -q -f qcow2 /home/alice/.config/vmservice/disk.qcow2 16M", check=True)
    config = (firmware_config() + disk).encode()
    container.run(f"{alice} tee /home/alice/.config/vmservice/mine.toml", stdin=config, check=True)
    state = f"{alice} systemctl --user show --property=ActiveState --value vm-disk@mine:root.service"

    container.run(f"{alice} systemctl --user start vm@mine", check=True)
    assert container.run(state, check=True).stdout == "active\n"
    container.run(f"{alice} systemctl --user restart vm@mine", check=True)
    assert container.run(state, check=True).stdout == "active\n"
    container.run(f"{alice} systemctl --user stop vm@mine", check=True)
    container.run(f"timeout 50 sh -c 'until [ \"$({state})\" = inactive ]; do sleep 0.1; done'", check=True)


@every_release
def test_a_user_has_a_network(container: Container, alice: str) -> None:
    """By passt, without a word of it in the file; low ports are not a user's."""
    container.run(UPLINK, check=True)
    file = "/home/alice/.config/vmservice/mine.toml"
    container.run(f"{alice} mkdir -p /home/alice/.config/vmservice", check=True)
    config = firmware_config() + '[[network]]\nforward = ["8080:80"]\n'
    container.run(f"{alice} tee {file}", stdin=config.encode(), check=True)
    state = f"{alice} systemctl --user show --property=ActiveState --value vm-passt@mine:network0.service"

    container.run(f"{alice} systemctl --user start vm@mine", check=True)
    assert container.run(state, check=True).stdout == "active\n"
    assert ":8080 " in container.run("ss --no-header --listening --tcp --numeric", check=True).stdout
    container.run(f"{alice} systemctl --user restart vm@mine", check=True)
    assert container.run(state, check=True).stdout == "active\n"
    container.run(f"{alice} systemctl --user stop vm@mine", check=True)
    container.run(f"timeout 50 sh -c 'until [ \"$({state})\" = inactive ]; do sleep 0.1; done'", check=True)

    container.run(f"{alice} sed -i s/8080:80/80:80/ {file}", check=True)
    assert container.run(f"{alice} systemctl --user start vm@mine").returncode != 0
    container.run("journalctl --sync")
    said = container.run("journalctl --output=cat _SYSTEMD_USER_UNIT=vm-passt@mine:network0.service", check=True).stdout
    assert "forwards port 80/tcp of the host, and this account may not listen at ports below 1024" in said
    container.run(f"{alice} systemctl --user reset-failed vm@mine")


@every_release
def test_check_config_has_the_users_own_eyes(container: Container, alice: str, release: str) -> None:
    """A log that only root may write, then one in the folder that the unit makes at its first start; the start agrees."""
    logs = "/home/alice/.config/log" if release == "bookworm" else "/home/alice/.local/state/log"
    container.run(f"{alice} mkdir -p /home/alice/.config/vmservice", check=True)
    for path, problem in (
        ("/var/log/mine.log", "in /var/log, a directory in which your account may not make files (mode 0755, of root:root)"),
        (f"{logs}/vmservice/mine/console.log", ""),
    ):
        config = firmware_config().replace('mode = "journal"', f'mode = "file"\npath = "{path}"')
        container.run(f"{alice} tee /home/alice/.config/vmservice/mine.toml", stdin=config.encode(), check=True)
        checked = container.run(f"{alice} vmservice check-config --user mine")
        assert (checked.returncode, problem in checked.stderr) == (78 if problem else 0, True), checked.stderr
        started = container.run(f"{alice} systemctl --user start vm@mine")
        assert (started.returncode != 0) == bool(problem)
        container.run(f"{alice} systemctl --user stop vm@mine; {alice} systemctl --user reset-failed vm@mine")


@every_release
def test_a_user_runs_a_vm_of_their_own(container: Container, alice: str) -> None:
    """Of what all of the user's VMs have, and an empty file."""
    folder = "/home/alice/.config/vmservice"
    container.run(f"{alice} mkdir -p {folder}/common.d", check=True)
    container.run(f"{alice} tee {folder}/common.d/all.toml", stdin=firmware_config().encode(), check=True)
    container.run(f"{alice} touch {folder}/mine.toml", check=True)
    name = f"org.vmservice.VM1.mine {OBJECT} org.vmservice.VM1"

    container.run(f"{alice} systemctl --user start vm@mine", check=True)
    assert container.run(f"{alice} busctl --user get-property {name} State", check=True).stdout == 's "running"\n'
    container.run(f"{alice} busctl --user call {name} Pause", check=True)
    assert container.run(f"{alice} busctl --user get-property {name} State", check=True).stdout == 's "paused"\n'
    container.run(f"{alice} systemctl --user reload vm@mine", check=True)
    container.run(f"{alice} systemctl --user stop vm@mine", check=True)

    result = container.run(f"{alice} systemctl --user show --property=Result --value vm@mine", check=True).stdout
    assert result == "success\n"
    journal = container.run("journalctl --output=cat _SYSTEMD_USER_UNIT=vm@mine.service", check=True).stdout
    assert journal.count("the configuration is reloaded") == 1
    assert "power button" in journal
