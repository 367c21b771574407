"""The host's id, and what follows from it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from vmservice.host import machine_id

ID = "0123456789abcdef0123456789abcdef"


def test_uuid5_is_that_of_the_rfc() -> None:
    namespace = uuid.UUID(ID)
    for name in ("demo", "web-1", "x" * 64):
        assert machine_id.uuid5(namespace.bytes, name) == uuid.uuid5(namespace, name).bytes


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([f"{ID}\n", None], bytes.fromhex(ID)),
        ([None, ID], bytes.fromhex(ID)),
        (["uninitialized\n", ID], bytes.fromhex(ID)),
        (["", None], None),
        (["x" * 32, None], None),
        ([f"{ID}0", None], None),
        (["\xff" * 32, None], None),
        ([None, None], None),
    ],
)
def test_the_files_are_asked_in_their_order(
    texts: list[str | None], expected: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "etc", tmp_path / "dbus"]
    for file, text in zip(files, texts, strict=True):
        if text is not None:
            file.write_bytes(text.encode("latin-1"))
    monkeypatch.setattr(machine_id, "_FILES", tuple(map(str, files)))
    assert machine_id.machine_id() == expected
