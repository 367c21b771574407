"""`[vsock]`: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config.load import load_config
from vmservice.config.sections.vsock import VsockDevice
from vmservice.errors import ConfigError


def load(folder: Path, text: str) -> list[VsockDevice]:
    (folder / "demo.toml").write_text(f'[kernel]\npath = "kernel"\n{text}\n')
    config = load_config("demo", str(folder / "demo.toml"))
    return [device for device in config.devices if isinstance(device, VsockDevice)]


@pytest.mark.parametrize(("text", "cid"), [("", 0), ("cid = 0", 0), ("cid = 3", 3), ("cid = 4294967294", 4294967294)])
def test_what_is_taken(tmp_path: Path, text: str, cid: int) -> None:
    (device,) = load(tmp_path, f"[vsock]\n{text}")
    assert (device.kind, device.name, device.cid) == ("vsock", "vsock", cid)


def test_a_vm_has_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert load(tmp_path, "") == []


RESERVED = "expected a number from 3 to 4294967294, or 0 for one that is chosen"
WORDS = {
    "cid = 1": f"vsock.cid is 1; {RESERVED}",
    "cid = 2": f"vsock.cid is 2; {RESERVED}",
    "cid = -1": "vsock.cid is -1; expected a whole number from 0 to 4294967294",
    "cid = 4294967295": "vsock.cid is 4294967295; expected a whole number from 0 to 4294967294",
    'cid = "3"': 'vsock.cid is "3"; expected a whole number from 0 to 4294967294',
    "cid = true": "vsock.cid is true; expected a whole number from 0 to 4294967294",
    "cdi = 3": "vsock.cdi is not a known key; did you mean cid?",
}


@pytest.mark.parametrize("text", WORDS)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[vsock]\n{text}")
    assert str(caught.value) == f"{tmp_path}/demo.toml: {WORDS[text]}"


def test_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vsock is an array; expected a section, \[vsock\]"):
        load(tmp_path, "[[vsock]]\n[[vsock]]")
