"""The fixture that holds for every test does find what is left behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = {
    "fd": ("import os\nkept = []\ndef test(): kept.append(os.open('/proc/self/stat', os.O_RDONLY))", "file descriptor"),
    "thread": (
        "import threading\nstop = threading.Event()\n"
        "def test(): threading.Thread(target=stop.wait, daemon=True, name='lost').start()",
        "(lost)",
    ),
    "raw thread": (
        "import _thread, time\ndef test(): _thread.start_new_thread(time.sleep, (60,))",
        "not of module threading",
    ),
    "child": ("import subprocess\nkept = []\ndef test(): kept.append(subprocess.Popen(['sleep', '5']))", "child process"),
    "task": (
        "import asyncio\nloop = asyncio.new_event_loop()\nkept = []\n"
        "async def forever(): await asyncio.sleep(99)\ndef test(): kept.append(loop.create_task(forever()))",
        "asyncio task",
    ),
}


@pytest.mark.parametrize("kind", [*LEAKS, "none"])
def test_leak(tmp_path: Path, kind: str) -> None:
    conftest = Path(__file__).parents[1] / "conftest.py"
    source = conftest.read_text("utf-8").replace("GRACE_SEC = 20.0", "GRACE_SEC = 0.05")
    (tmp_path / "conftest.py").write_text(source, "utf-8")
    code, words = LEAKS.get(kind, ("def test(): pass", "1 passed"))
    (tmp_path / "test_it.py").write_text(code, "utf-8")
    shutil.copy(conftest.parents[1] / "pyproject.toml", tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert words in result.stdout
    assert ("the test left behind" in result.stdout) == (kind in LEAKS)
