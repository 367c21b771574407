"""The command lines of the clients: every verb of the object has one, options go before or after the command, and nonsense is
refused before a bus is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from vmservice.cli import main
from vmservice.client import commands
from vmservice.control.api import VERBS

Call = tuple[str, tuple[object, ...], dict[str, object]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What reaches `commands`, and nothing else happens."""
    found: list[Call] = []

    def taker(name: str) -> Callable[..., int]:
        def take(*arguments: object, **options: object) -> int:
            found.append((name, arguments, options))
            return 0

        return take

    for name in ("list_vms", "show_status", "run_verb", "power_off", "wait_for_state"):
        monkeypatch.setattr(commands, name, taker(name))
    return found


def test_every_method_of_the_object_is_reached_by_a_command(calls: list[Call]) -> None:
    for verb in VERBS:
        words = verb.command or "poweroff --force"
        assert main([*words.split(), "demo", *(["2"] if verb.signature else [])]) == 0
    assert [arguments[0] for _, arguments, _ in calls] == [verb.member for verb in VERBS]


def test_a_hard_stop_is_never_the_plain_word(calls: list[Call]) -> None:
    assert main(["shutdown", "demo"]) == main(["poweroff", "demo"]) == main(["reboot", "demo", "--timeout", "9"]) == 0
    assert calls == [
        ("run_verb", ("PowerButton", "demo"), {"user": False, "vcpus": None}),
        ("power_off", ("demo",), {"user": False, "timeout_sec": 120.0}),
        ("power_off", ("demo",), {"user": False, "timeout_sec": 9.0, "start_again": True}),
    ]


@pytest.mark.parametrize("words", ["--user --json list", "list --user --json", "--user list --json", "--json list --user"])
def test_options_go_before_or_after_the_command(calls: list[Call], words: str) -> None:
    assert main(words.split()) == 0
    assert main(["list"]) == 0
    assert [options for _, _, options in calls] == [{"user": True, "as_json": True}, {"user": False, "as_json": False}]


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
@pytest.mark.parametrize(("user", "line"), [((), "systemctl {} vm@demo"), (("--user",), "systemctl --user {} vm@demo")])
@pytest.mark.parametrize(("status", "ours"), [(0, 0), (5, 71)])
def test_systemctl_is_run_and_shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    user: tuple[str, ...],
    line: str,
    status: int,
    ours: int,
) -> None:
    ran: list[list[str]] = []

    def fake(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        assert not check
        ran.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", fake)
    assert main([*user, verb, "demo"]) == ours
    assert ran == [line.format(verb).split()]
    said = capsys.readouterr()
    assert said.out == line.format(verb) + "\n"
    assert said.err == ("" if ours == 0 else f"vmservice: `{line.format(verb)}` has failed with exit status 5\n")


def test_without_systemctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["start", "demo"]) == 69
    assert "systemctl is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("status", "the following arguments are required: NAME"),
        ("pause", "the following arguments are required: NAME"),
        ("pause ../demo", '"../demo" cannot be the name of a VM'),
        ("status demo.service/x", '"demo.service/x" cannot be the name of a VM'),
        ("resize demo", "the following arguments are required: N"),
        ("resize demo two", 'argument N: "two" is not a whole number'),
        ("resize demo 0", "no VM can have 0 vCPUs; 1 to 254 are possible"),
        ("resize demo 255", "no VM can have 255 vCPUs; 1 to 254 are possible"),
        ("pause demo 2", "unrecognized arguments: 2"),
        ("wait demo", "the following arguments are required: STATE"),
        ("wait demo flying", "invalid choice: 'flying'"),
        ("wait demo running --timeout soon", 'argument --timeout: "soon" is not a number'),
        ("wait demo running --timeout 0", "must be more than 0 seconds"),
        ("wait demo running --timeout=-1", "must be more than 0 seconds"),
        ("wait demo running --timeout nan", "must be more than 0 seconds"),
        ("wait demo running --timeout inf", "must be more than 0 seconds"),
        ("poweroff demo --timeout 0", "must be more than 0 seconds"),
        ("logs demo -n -1", "-1 lines cannot be shown; --lines takes 0 or more"),
        ("--json pause demo", "pause has no option --json"),
        ("--user check-host", "check-host has no option --user"),
        ("--user run --bus system demo", "--user is --bus session; --bus system contradicts it"),
        ("list demo", "unrecognized arguments: demo"),
        ("list --jsn", "unrecognized arguments: --jsn"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], words: str, sentence: str) -> None:
    assert main(words.split()) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.startswith("vmservice: ")
    assert said.err.count("\n") == 1
