"""A check of a configuration may be root's, in a folder that a VM writes to: what it opens there, and what it only looks at."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.check.configuration import find_mistakes
from vmservice.config.load import load_config
from vmservice.host.files import WrongKindError, open_file

_TIOCGPTN = 0x80045430  # <asm-generic/ioctls.h>
_TIOCSPTLCK = 0x40045431

KERNEL = """\
[kernel]
path = "vmlinuz"
initramfs = "initrd"

[[disk]]
name = "raw"
format = "raw"
path = "disk"

[[disk]]
name = "qcow2"
format = "qcow2"
path = "disk.qcow2"

[[pmem]]
name = "data"
path = "pmem"

[cloud-init]
user_data = "user-data"

[credentials."x"]
file = "credential"

[memory]
size = "64M"
shared = true
"""


class Terminal:
    """A device whose open leaves a trace, as a watchdog's does: once a process has had the terminal open, its other end is told
    that nobody has it open."""

    def __init__(self) -> None:
        self.other_end = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(self.other_end, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("i", fcntl.ioctl(self.other_end, _TIOCGPTN, bytes(4)))
        self.path = f"/dev/pts/{number}"

    def was_opened(self) -> bool:
        poll = select.poll()
        poll.register(self.other_end, select.POLLIN)
        return any(events & select.POLLHUP for _, events in poll.poll(0))


@pytest.fixture
def device() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.other_end)


def test_an_open_of_the_device_would_be_noticed(device: Terminal) -> None:
    assert not device.was_opened()
    os.close(os.open(device.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    assert device.was_opened()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (KERNEL, ["vmlinuz", "initrd", "disk", "disk.qcow2", "pmem", "user-data", "credential"]),
        ('[firmware]\npath = "bios"\n', ["bios"]),
    ],
)
def test_a_device_that_a_link_leads_to_is_not_opened(tmp_path: Path, device: Terminal, text: str, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).symlink_to(device.path)
    (tmp_path / "web.toml").write_text(text)
    said = [str(mistake).replace('"', "") for mistake in find_mistakes(load_config("web", str(tmp_path / "web.toml")))]
    assert len(said) == len(names)
    for name in names:
        assert any(f"/{name} is a character device; it must be a regular file" in one.replace(", which", "") for one in said), (
            said
        )
    assert not device.was_opened()


def test_a_file_that_is_exchanged_once_it_was_looked_at(
    tmp_path: Path, device: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is what is opened."""
    file = tmp_path / "vmlinuz"
    file.write_bytes(b"kernel")
    look = os.fstat

    def look_and_exchange(fd: int) -> os.stat_result:
        status = look(fd)
        file.unlink(missing_ok=True)
        file.symlink_to(device.path)
        return status

    monkeypatch.setattr(os, "fstat", look_and_exchange)
    fd = open_file(str(file), os.O_RDONLY)
    monkeypatch.undo()
    try:
        assert os.read(fd, 16) == b"kernel"
    finally:
        os.close(fd)
    with pytest.raises(WrongKindError):
        open_file(str(file), os.O_RDONLY)
    assert not device.was_opened()
