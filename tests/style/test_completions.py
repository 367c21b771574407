"""The completions of bash, zsh and fish have the commands and options of the parser; bash's is asked, in a real bash."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmservice.cli import _parser
from vmservice.vm.state import TRANSITIONS

COMPLETIONS = Path(__file__).parents[2] / "packaging/completions"
BASH, FISH, ZSH = COMPLETIONS / "bash/vmservice", COMPLETIONS / "fish/vmservice.fish", COMPLETIONS / "zsh/_vmservice"
PARSER = _parser()[0]

# What `systemctl show` says of four VMs.
UNITS = """Id=vm@web.service
ActiveState=active
StatusText=running; 1 vCPU, 256 MiB

Id=vm@db-1.service
ActiveState=active
StatusText=paused; 2 vCPUs, 512 MiB

Id=vm@off.service
ActiveState=active
StatusText=shutdown; 1 vCPU, 256 MiB; last exit: poweroff; Boot starts it again

Id=vm@old.service
ActiveState=failed
StatusText=the guest panicked
"""
# The last one by a drop-in alone.
CONFIGURED = ("web", "db-1", "old", "new")


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in PARSER._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {string for action in parser._actions for string in action.option_strings}


def with_value() -> set[str]:
    """The options of all commands that take a value."""
    actions = [action for parser in commands().values() for action in parser._actions]
    return {string for action in actions if action.nargs != 0 for string in action.option_strings}


class Bash:
    """A bash with the completion, for a user with the VMs of CONFIGURED, and a systemctl that says UNITS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        configurations = folder / ".config/vmservice"
        configurations.mkdir(parents=True)
        for name in CONFIGURED[:-1]:
            (configurations / f"{name}.toml").touch()
        (configurations / f"{CONFIGURED[-1]}.toml.d").mkdir()
        (configurations / f"{CONFIGURED[-1]}.toml.d/10-all.toml").touch()
        (configurations / "empty.toml.d").mkdir()
        (folder / "units").write_text(UNITS)

    def complete(self, *typed: str) -> list[str]:
        """What is offered for the last word, in the order in which it is; words as bash cuts them."""
        return self._run(typed).split()

    def calls(self, *typed: str) -> list[str]:
        """The systemctl lines that this takes."""
        self._run(typed)
        return (self._folder / "calls").read_text().splitlines()

    def _run(self, typed: tuple[str, ...]) -> str:
        (self._folder / "calls").write_text("")
        script = f"""
            systemctl() {{ echo "$*" >> calls; cat units; }}
            source {BASH}
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
            $(complete -p vmservice | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(
            ["bash", "--norc", "-c", script, "bash", "vmservice", *typed],
            cwd=self._folder,
            env={"HOME": str(self._folder), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.stderr == ""
        return done.stdout


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    return Bash(tmp_path)


def test_bash_offers_every_command(bash: Bash) -> None:
    assert set(bash.complete("")) == set(commands())
    assert bash.complete("--user", "stat") == ["status"]


@pytest.mark.parametrize("command", ["", *sorted(commands())])
def test_bash_offers_every_option(bash: Bash, command: str) -> None:
    expected = options(commands()[command] if command else PARSER)
    assert set(bash.complete(*([command] if command else []), "-")) == expected


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("start", {"new", "old"}),
        ("run", {"new", "old"}),
        ("update-kernel", {"new", "old"}),
        ("pause", {"web"}),
        ("resume", {"db-1"}),
        ("boot", {"db-1", "off"}),
        ("stop", {"web", "db-1", "off"}),
        ("poweroff", {"web", "db-1", "off"}),
        ("delete", set(CONFIGURED)),
        ("edit", set(CONFIGURED)),
        ("status", {*CONFIGURED, "off"}),
        ("list", set()),
        ("create", set()),
        ("check-host", set()),
    ],
)
def test_bash_offers_the_vms_that_a_command_is_for(bash: Bash, command: str, names: set[str]) -> None:
    assert set(bash.complete("--user", command, "")) == names
    assert set(bash.complete(command, "--user", "")) == names


def test_every_command_that_takes_a_vm_is_offered_some(bash: Bash) -> None:
    """All but the one that makes it."""
    for command, parser in commands().items():
        given = [action.metavar for action in parser._actions if not action.option_strings]
        takes_name = any("NAME" in str(metavar) for metavar in given) and command != "create"
        assert bool(bash.complete("--user", command, "")) == takes_name, command


def test_bash_offers_each_vm_once_where_a_command_takes_several(bash: Bash) -> None:
    assert set(bash.complete("stop", "web", "")) == {"db-1", "off"}
    assert set(bash.complete("resize", "web", "")) == set()
    several = {command for command, parser in commands().items() if any(action.nargs == "+" for action in parser._actions)}
    for command in several - {"pause", "power-button", "resume", "shutdown"}:
        assert bash.complete("--user", command, "x", ""), command


def test_bash_asks_the_manager_whose_vms_are_meant(bash: Bash) -> None:
    arguments = "show --property=Id,ActiveState,StatusText vm@*.service"
    assert bash.calls("stop", "") == [arguments]
    assert bash.calls("--user", "stop", "") == [f"--user {arguments}"]
    assert bash.calls("stop", "-") == []


def test_bash_offers_what_follows_the_name(bash: Bash) -> None:
    assert set(bash.complete("console", "web", "")) == {"serial", "hvc"}
    assert set(bash.complete("wait", "web", "")) == {"db-1", "off", "old", *TRANSITIONS}
    assert bash.complete("ssh", "root", "@", "") == ["web"]
    assert bash.complete("ssh", "root", "@") == ["web"]
    assert bash.complete("ssh", "web", "") == []


def test_bash_offers_the_values_of_options(bash: Bash, tmp_path: Path) -> None:
    (tmp_path / "image.raw").touch()
    for option in ("--image", "--from-root", "--ssh-key", "--user-data"):
        assert bash.complete("create", option, "im") == ["image.raw"]
        assert bash.complete("create", option, "=", "im") == ["image.raw"]
    assert bash.complete("run", "--config", "im") == ["image.raw"]
    assert set(bash.complete("run", "--bus", "s")) == {"system", "session"}
    assert set(bash.complete("create", "--network", "")) == {"passt", "tap", "tap=", "bridge=", "none"}
    assert bash.complete("check-config", ".config/vmservice/o") == [".config/vmservice/old.toml"]


def test_bash_takes_no_value_of_an_option_for_a_name(bash: Bash) -> None:
    for option in sorted(with_value()):
        command = next(name for name, parser in commands().items() if option in options(parser))
        assert bash.complete("--user", command, option, "x", "") == bash.complete("--user", command, ""), option
    assert bash.complete("logs", "-n", "") == []


def test_fish_has_every_command_and_option() -> None:
    found: dict[str, set[str]] = {}
    for line in FISH.read_text().splitlines():
        offered = {f"--{name}" for name in re.findall(r" -l ([a-z-]+)", line)} | {
            f"-{x}" for x in re.findall(r" -s (\w)", line)
        }
        if " -n __fish_use_subcommand -a " in line:
            found.setdefault(line.split()[6], set())
        elif "__fish_seen_subcommand_from" in line:
            where = line.split("'")[1].removeprefix("__fish_seen_subcommand_from ").partition(";")[0]
            for command in where.split():
                found[command] |= offered
    everywhere = {"-h", "--help"}
    assert "complete -c vmservice -s h -l help " in FISH.read_text()
    assert {command: offered | everywhere for command, offered in found.items()} == {
        command: options(parser) for command, parser in commands().items()
    }


def test_fish_knows_which_options_take_a_value() -> None:
    text = FISH.read_text()
    assert {f"--{name}" for name in re.findall(r" -l ([a-z-]+) (?:-r|-x)", text)} == {
        option for option in with_value() if option.startswith("--")
    }
    (skipped,) = re.findall(r"case (--bus.*)", text)
    assert set(skipped.split()) == with_value()


def test_zsh_has_every_command_and_option() -> None:
    text = ZSH.read_text()
    (listed,) = re.findall(r"^    commands=\((.*?)^    \)", text, re.MULTILINE | re.DOTALL)
    assert re.findall(r"'([a-z-]+):", listed) == sorted(commands())
    found = {}
    for where, block in re.findall(r"^        \(([a-z| -]+)\)\n(.*?);;", text, re.MULTILINE | re.DOTALL):
        offered = set(re.findall(r"[')](--[a-z-]+)\[", block))
        offered |= {option for pair in re.findall(r"\{(-\w,--[a-z-]+)\}", block) for option in pair.split(",")}
        offered |= {"--user", "-h", "--help"} if "$user" in block else set()
        offered |= {"--no-ask-password"} if "$password" in block else set()
        offered |= {"--json"} if "$json" in block else set()
        found.update(dict.fromkeys(where.replace(" ", "").split("|"), offered))
    assert found == {command: options(parser) for command, parser in commands().items()}


@pytest.mark.parametrize("file", [BASH, FISH, ZSH], ids=["bash", "fish", "zsh"])
def test_the_shell_takes_it(file: Path) -> None:
    """Where the shell is there; all that is said of it above needs none."""
    text = file.read_text()
    assert "vmservice(1)" in text.splitlines()[0] or text.startswith("#compdef vmservice\n")
    shell = {BASH: "bash", FISH: "fish", ZSH: "zsh"}[file]
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n", file], check=True)


def test_the_package_has_them_where_each_shell_looks() -> None:
    installed = dict(line.split() for line in (COMPLETIONS.parent / "debian/vmservice.install").read_text().splitlines())
    assert {name: folder for name, folder in installed.items() if name.startswith("packaging/completions/")} == {
        "packaging/completions/bash/vmservice": "usr/share/bash-completion/completions",
        "packaging/completions/fish/vmservice.fish": "usr/share/fish/vendor_completions.d",
        "packaging/completions/zsh/_vmservice": "usr/share/zsh/vendor-completions",
    }
