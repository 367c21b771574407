"""A confined process signals itself and nobody else."""

from __future__ import annotations

import os
import signal

import pytest

from vmservice.host import landlock


def in_child() -> bytes:
    """Fork; the child confines itself and tries: one letter each for the confinement, its parent, itself."""
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"y" if landlock.confine() else b"n")
            for pid in (parent, os.getpid()):
                try:
                    os.kill(pid, 0)
                    os.write(writer, b"y")
                except PermissionError:
                    os.write(writer, b"n")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        os.waitpid(child, 0)
        return os.read(reader, 16)
    finally:
        os.close(reader)


def test_confined_or_unchanged() -> None:
    """Which of the two depends on the kernel; there is nothing between them."""
    assert in_child() in {b"yny", b"nyy"}


@pytest.mark.parametrize("answers", [[-1], [5], [6, -1]])
def test_a_kernel_without_it_changes_nothing(monkeypatch: pytest.MonkeyPatch, answers: list[int]) -> None:
    calls: list[int] = []

    class Libc:
        def syscall(self, number: int, *_arguments: object) -> int:
            calls.append(number)
            return answers[len(calls) - 1]

    monkeypatch.setattr(landlock, "_libc", Libc())
    assert not landlock.confine()
    assert calls == [444] * len(answers)


def test_the_parent_may_still_stop_a_confined_child() -> None:
    child = os.fork()
    if child == 0:
        landlock.confine()
        signal.pause()
        os._exit(0)
    os.kill(child, signal.SIGKILL)
    _pid, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
