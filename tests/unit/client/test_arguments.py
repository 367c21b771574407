"""The command lines of the clients: every verb of the object has one, options go before or after the command, and nonsense is
refused before a bus is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vmservice.cli import main
from vmservice.client import commands
from vmservice.client.texts import TEXTS
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

    for name in ("list_vms", "show_status", "run_verb", "power_off", "reboot", "wait_for_state"):
        monkeypatch.setattr(commands, name, taker(name))
    return found


def test_every_method_of_the_object_is_reached_by_a_command(calls: list[Call]) -> None:
    for verb in VERBS:
        words = verb.command or "poweroff --force"
        assert main([*words.split(), "demo", *(["2"] if verb.signature else [])]) == 0
    assert [arguments[0] for _, arguments, _ in calls] == [verb.member for verb in VERBS]


def test_a_hard_stop_is_never_the_plain_word(calls: list[Call]) -> None:
    assert (
        main(["shutdown", "demo"])
        == main(["poweroff", "demo"])
        == main(["--no-ask-password", "reboot", "demo", "--timeout", "9"])
        == 0
    )
    assert calls == [
        ("run_verb", ("PowerButton", ["demo"]), {"user": False, "ask_password": True}),
        ("power_off", (["demo"],), {"user": False, "ask_password": True, "timeout_sec": 120.0}),
        ("reboot", (["demo"],), {"user": False, "ask_password": False, "timeout_sec": 9.0}),
    ]


@pytest.mark.parametrize("words", ["--user --json list", "list --user --json", "--user list --json", "--json list --user"])
def test_options_go_before_or_after_the_command(calls: list[Call], words: str) -> None:
    assert main(words.split()) == 0
    assert main(["list"]) == 0
    assert [(options["user"], options["as_json"]) for _, _, options in calls] == [(True, True), (False, False)]


def test_list_takes_all(calls: list[Call]) -> None:
    assert main(["list", "--all"]) == main(["list"]) == 0
    assert [options["everything"] for _, _, options in calls] == [True, False]


@pytest.mark.parametrize(
    "words",
    [
        "wait --user --timeout 5 list b running",
        "--timeout 5 --user wait list b running",
        "--timeout=5 wait list --user b running",
        "wait list b --timeout 5 running --user",
        "wait list b list running --timeout=5 --user",
    ],
)
def test_any_option_goes_anywhere(calls: list[Call], words: str) -> None:
    """`list` is a VM here, and asked for once."""
    assert main(words.split()) == 0
    assert calls == [("wait_for_state", (["list", "b"], "running"), {"user": True, "timeout_sec": 5.0})]


def test_every_help_says_when_the_command_returns_and_with_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4] != " "]
    assert set(TEXTS) == {line.split()[0] for line in listed}
    for command in TEXTS:
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        said = capsys.readouterr()
        assert (done.value.code, said.err) == (0, "")
        text = " ".join(said.out.split())
        assert "It returns" in text or "it returns" in text, command
        assert "exit status: " in text, command


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
@pytest.mark.parametrize(
    ("user", "line"),
    [((), "systemctl {} vm@demo vm@web.socket.service"), (("--user",), "systemctl --user {} vm@demo vm@web.socket.service")],
)
@pytest.mark.parametrize(("end", "ours"), [("exit 0", 0), ("exit 5", 5), ("kill $$", 143)])
def test_systemctl_is_run_and_shown(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    verb: str,
    user: tuple[str, ...],
    line: str,
    end: str,
    ours: int,
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "asked to $*"\n{end}\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main([*user, verb, "demo", "web.socket", "demo"]) == ours
    shown = line.format(verb)
    assert capfd.readouterr() == (f"asked to {shown.removeprefix('systemctl ')}\n", f"{shown}\n")


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
        ("pause demo ../web", '"../web" cannot be the name of a VM'),
        ("resize demo 2 3", 'resize takes no "3"; see vmservice resize --help'),
        ("wait demo", "the following arguments are required: STATE"),
        ("wait demo flying", '"flying" is no state of a VM; expected one of created, running, paused, shutdown'),
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
        ("list demo", 'list takes no "demo"; see vmservice list --help'),
        ("list --jsn", "list has no option --jsn; did you mean --json?; see vmservice list --help"),
        ("--jsn list", "list has no option --jsn; did you mean --json?; see vmservice list --help"),
        ("poweroff demo --forced", "poweroff has no option --forced; did you mean --force?"),
        ("lst", 'there is no command "lst"; did you mean list?; see vmservice --help'),
        ("--user shutdwon demo", 'there is no command "shutdwon"; did you mean shutdown?; see vmservice --help'),
        ("xyzzy demo", 'there is no command "xyzzy"; see vmservice --help'),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], words: str, sentence: str) -> None:
    assert main(words.split()) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence in said.err
    assert said.err.startswith("vmservice: ")
    assert said.err.count("\n") == 1
