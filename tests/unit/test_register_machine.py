"""What root tells systemd-machined of a VM: of what the VM says of itself, nothing but numbers and taps."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "units/register-machine"
# Says what the VM's Devices are, takes every machine, and notes what it was called with.
BUSCTL = """#!/bin/sh
case "$*" in
*Devices*) cat "$FOLDER/devices" ;;
*) echo "$*" >> "$FOLDER/calls" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """Where the calls of busctl are written. There is no other program but those that the script itself takes."""
    for program in ("sh", "cat", "cut", "grep", "sed"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    (tmp_path / "busctl").write_text(BUSCTL)
    (tmp_path / "busctl").chmod(0o755)
    return tmp_path / "calls"


def registered(folder: Path, tap: str) -> str:
    """What is told to machined of a VM whose network is said to be at `tap`."""
    details = f'2 "mode" s "tap" "tap" s "{tap}"'
    (folder / "devices").write_text(f'a(ssa{{sv}}) 2 "vsock" "vsock" 1 "cid" t 4711 "network" "network0" {details}')
    environment = {"PATH": str(folder), "FOLDER": str(folder)}
    command = ["/bin/sh", str(SCRIPT), "web", "42"]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.stderr == ""
    _, _, told = (folder / "calls").read_text().partition("Manager ")
    return told.strip()


def test_no_name_of_a_tap_leads_to_another_file(calls: Path) -> None:
    """A VMM that its guest has taken over may write `ifindex` where it likes to, and made root hand on what is there."""
    folder = calls.parent
    (folder / "tun_flags").touch()
    (folder / "ifindex").write_text("7 8")
    assert registered(folder, f"../../..{folder}") == "RegisterMachine sayssus web 0 vmservice vm 42"


@pytest.mark.parametrize("interface", ["lo", ".", "..", "*"])
def test_no_interface_but_a_tap_is_the_vms(calls: Path, interface: str) -> None:
    assert registered(calls.parent, interface) == "RegisterMachine sayssus web 0 vmservice vm 42"
