"""The SMBIOS tables in the memory of a real machine: there when its kernel begins, and again after a reset."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path

import pytest
from support.images import elf, segment
from support.kvm_guest import needs_kvm, running_guest
from support.smbios_walk import find_tables, walk

from vmservice.errors import ConfigError
from vmservice.host.machine_id import machine_id
from vmservice.memory.guest_memory import GuestMemory

pytestmark = [pytest.mark.kvm, needs_kvm]

HALT = elf([segment(0x100000, bytes.fromhex("f4 ebfd"))], entry=0x100000)
CREDENTIALS = {"plain": b"one", "binary": bytes(range(256)), "large": b"\xa5" * 40_000}


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(HALT)
    return path


def credentials(memory: GuestMemory) -> dict[str, bytes]:
    strings = [string for one in walk(find_tables(memory)[1]) if one.kind == 11 for string in one.strings]
    pairs = (string.removeprefix(b"io.systemd.credential.binary:").split(b"=", 1) for string in strings)
    return {name.decode(): base64.b64decode(value) for name, value in pairs}


def test_the_guest_finds_its_credentials_at_its_start_and_after_a_reset(kernel: Path) -> None:
    with running_guest(kernel, is_kernel=True, credentials=CREDENTIALS) as guest:
        assert credentials(guest.memory) == CREDENTIALS
        guest.memory.write(0xF2000, bytes(0xE000))
        guest.vm.reboot()
        assert credentials(guest.memory) == CREDENTIALS


def test_the_uuid_follows_from_the_host_and_the_name(kernel: Path) -> None:
    with running_guest(kernel, is_kernel=True) as guest:
        structures = walk(find_tables(guest.memory)[1])
        host = uuid.UUID(bytes=machine_id() or bytes(16))
        assert uuid.UUID(bytes_le=structures[1].formatted[8:24]) == uuid.uuid5(host, "test")
        assert [one.kind for one in structures] == [0, 1, 127]


def test_credentials_that_no_guest_could_read_are_refused_before_it_starts(kernel: Path) -> None:
    with (
        pytest.raises(
            ConfigError, match=r"/nowhere/test\.toml: the credentials take 6\d{4} bytes of SMBIOS tables; at most 57296 fit"
        ),
        running_guest(kernel, is_kernel=True, credentials={"large": bytes(45_000)}),
    ):
        pass
