"""`vmservice console`: its arguments."""

from __future__ import annotations

import argparse

import pytest

from vmservice.client import console
from vmservice.client.arguments import add_commands, run_command
from vmservice.errors import UsageError


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(dest="command"))
    return parser.parse_args(["console", *words])


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
    assert run_command(parse(*words)) == 0
    assert calls == [expected]


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be the name of a VM"):
        run_command(parse("../etc"))


@pytest.mark.parametrize("label", ["../serial", "", "a/b", ".hidden", "x" * 65])
def test_a_label_that_is_none_is_refused(label: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a console"):
        run_command(parse("demo", label))
