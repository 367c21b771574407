"""The process gives up the right to signal others before it reads its configuration, where the kernel has a means for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from support.process import SIM_CONFIG, VmProcess

# What sitecustomize does: whoever reads the configuration tries first to signal the parent of the process.
SEAM = """\
import os, sys
from vmservice.config import load as owner
former = owner.load_config
def load_config(*arguments, **options):
    try:
        os.kill(os.getppid(), 0)
        print("the parent can be signalled", file=sys.stderr, flush=True)
    except PermissionError:
        print("the parent is out of reach", file=sys.stderr, flush=True)
    return former(*arguments, **options)
owner.load_config = load_config
"""

# <linux/landlock.h>: the scope of signals came with version 6, which landlock_create_ruleset(NULL, 0, 1) returns.
LANDLOCK_VERSION = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)


def test_a_running_vmm_cannot_signal_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "demo.toml"
    config.write_text(SIM_CONFIG)
    (tmp_path / "sitecustomize.py").write_text(SEAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = VmProcess(config, "--sim", "--bus", "none")
    try:
        process.wait_for("the parent is out of reach" if LANDLOCK_VERSION >= 6 else "the parent can be signalled")
    finally:
        process.close()
