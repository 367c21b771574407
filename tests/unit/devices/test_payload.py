"""The heartbeat payload builds in every variant, once, and its reset vector leads into the image."""

from __future__ import annotations

import os
import shutil
import unittest
from pathlib import Path

import pytest
from support.payload import IMAGE_BYTES, TOOLS, VARIANTS, build

needs_binutils = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason=f"the payload is built with binutils: {', '.join(TOOLS)}"
)


@needs_binutils
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_is_64_kib_with_a_far_jump_at_its_reset_vector(tmp_path: Path, variant: str) -> None:
    image = build(variant, tmp_path).read_bytes()
    assert len(image) == IMAGE_BYTES
    jump = image[0xFFF0:0xFFF5]
    assert jump[0] == 0xEA
    assert int.from_bytes(jump[3:5], "little") == 0xF000
    entry = int.from_bytes(jump[1:3], "little")
    # mov dx, LSR; in al, dx; mov dx, COM1; mov al, 'H'; out dx, al
    assert image[entry : entry + 10] == bytes.fromhex("ba fd 03 ec ba f8 03 b0 48 ee")


@needs_binutils
def test_an_image_is_built_once(tmp_path: Path) -> None:
    first = build("idle", tmp_path)
    before = first.stat()
    assert build("idle", tmp_path) == first
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert build("busy", tmp_path) != first
    assert sorted(os.listdir(tmp_path)) == sorted({first.name, build("busy", tmp_path).name})


def test_without_binutils_it_is_a_skip_that_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(unittest.SkipTest, match="as, ld, objcopy cannot be found"):
        build("beat", tmp_path)
