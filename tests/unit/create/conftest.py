"""A person with folders, a key and an image of their own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disk_images import disk

KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519" + b"\0\0\0\x20" + bytes(32)).decode() + " me"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where `--user` puts things: config/vmservice, state/vmservice. There is an SSH key, and no systemd to be asked."""
    home = tmp_path / "home"
    for name in ("config", "state", "run", ".ssh"):
        (home / name).mkdir(parents=True)
    (home / ".ssh/id_ed25519.pub").write_text(f"{KEY}\n")
    monkeypatch.setenv("HOME", str(home))
    for variable, name in (("CONFIG_HOME", "config"), ("STATE_HOME", "state"), ("RUNTIME_DIR", "run")):
        monkeypatch.setenv(f"XDG_{variable}", str(home / name))
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setattr("vmservice.create.places.unit_word", lambda place, question: "inactive")
    yield home


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return disk(tmp_path / "image")


def left(home: Path) -> list[str]:
    """All files of VMs."""
    return sorted(
        str(path.relative_to(home)) for part in ("config", "state") for path in (home / part).rglob("*") if path.is_file()
    )
