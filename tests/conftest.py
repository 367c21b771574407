"""What holds for every test: it leaves no thread, file descriptor, child process or asyncio task behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

# What is being ended when a test returns may take the kernel a moment more, such as a thread after its last line.
GRACE_SEC = 20.0

# Opened once by libraries for their own use, whenever they are first needed.
_LIBRARY_FDS = ("/dev/urandom", "/memfd:libffi", "/dev/null")


def pytest_configure() -> None:
    """Under nohup(1) SIGHUP is ignored, in the background of a script SIGINT, and so they would be in what a test starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Belongings:
    """What the process has: each thing under a key, with words for it."""

    def __init__(self) -> None:
        self.fds = _fds()
        self.threads = _threads()
        self.children = _children()
        self.tasks = _tasks()

    def new_since(self, before: Belongings) -> list[str]:
        news = []
        for kind in ("fds", "threads", "children", "tasks"):
            old: dict[object, str] = getattr(before, kind)
            news += [
                text for key, text in getattr(self, kind).items() if key not in old or (kind == "fds" and old[key] != text)
            ]
        return news


def _fds() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if not target.startswith(_LIBRARY_FDS):
            found[int(entry)] = f"file descriptor {entry} ({target})"
    return found


def _threads() -> dict[int, str]:
    """Python's threads by name, and every other that the kernel knows, such as those of `_thread`."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    return {
        int(entry): f"thread {entry} ({names.get(int(entry), 'not of module threading')})"
        for entry in os.listdir("/proc/self/task")
    }


def _children() -> dict[int, str]:
    """Zombies too: a child that nobody waited for is left behind."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                pids = file.read().split()
        except OSError:
            continue
        found.update({int(pid): f"child process {pid}" for pid in pids})
    return found


def _tasks() -> dict[int, str]:
    """Tasks of any loop that are not done. Python keeps them in one weak set; its name differs from version to version."""
    tasks = sys.modules.get("asyncio.tasks")
    known = getattr(tasks, "_scheduled_tasks", None) or getattr(tasks, "_all_tasks", None) or ()
    return {id(task): f"asyncio task {task!r}" for task in list(known) if not task.done()}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = Belongings()
    yield
    left = Belongings().new_since(before)
    if left:
        gc.collect()  # an exception's traceback may hold what the test has let go
        deadline = time.monotonic() + GRACE_SEC
        while (left := Belongings().new_since(before)) and time.monotonic() < deadline:
            time.sleep(0.005)
    if left:
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)
