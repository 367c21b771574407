"""`vmservice console`: its arguments."""

from __future__ import annotations

import pytest

from vmservice.cli import main
from vmservice.client import console


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("demo",), ("demo", "/run/vmservice/demo", None)),
        (("demo", "hvc"), ("demo", "/run/vmservice/demo", "hvc")),
        (("demo", "org.test.agent"), ("demo", "/run/vmservice/demo", "org.test.agent")),
        (("--user", "demo", "serial"), ("demo", "/run/user/7/vmservice/demo", "serial")),
    ],
)
def test_what_is_attached_to(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: tuple[str, str, str | None]
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr(console, "attach", lambda *arguments: calls.append(arguments))
    assert main(["console", *words]) == 0
    assert calls == [expected]


def test_a_name_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["console", "../etc"]) == 64
    assert "cannot be the name of a VM" in capsys.readouterr().err


@pytest.mark.parametrize("label", ["../serial", "", "a/b", ".hidden", "x" * 65])
def test_a_label_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], label: str) -> None:
    assert main(["console", "demo", label]) == 64
    assert "cannot be the name of a console" in capsys.readouterr().err
