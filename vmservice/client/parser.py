"""How a command line is read: options anywhere, and a near word for each that is not known."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from vmservice.client.texts import TEXTS
from vmservice.errors import UsageError, quoted

# What stands where a command's own words begin: options behind it are theirs.
_REST = argparse.REMAINDER
_WIDTH_MAX = 120


class Parser(argparse.ArgumentParser):
    """Of `vmservice`, or of one command; what is wrong is a UsageError. Options may stand between a command's names."""

    _within = False

    def error(self, message: str) -> None:  # type: ignore[override]  # raises as argparse's own exits
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        has_rest = any(action.nargs in (_REST, argparse.PARSER) for action in self._actions)
        if self._within or has_rest:
            return super().parse_known_args(args, namespace)
        self._within = True  # up to Python 3.12 the other method calls this one
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_command(commands: Commands[Any], command: str, does: str, epilog: str = "") -> argparse.ArgumentParser:
    """The parser of a command that `does` so; the rest of its help is in `texts.py`."""
    returns, statuses = TEXTS[command]
    width = min(shutil.get_terminal_size().columns, _WIDTH_MAX) - 2
    parser: argparse.ArgumentParser = commands.add_parser(
        command,
        help=does,
        description=textwrap.fill(f"{does[0].upper()}{does[1:]}. {returns}", width),
        epilog=(f"{textwrap.fill(epilog, width)}\n\n" if epilog else "") + _status_lines(statuses),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _status_lines(statuses: str) -> str:
    """`0 done; 77 not permitted; that of ssh` as a list."""
    if not statuses[0].isdigit():
        return f"exit status: {statuses}"
    parts = [part.partition(" ") if part[0].isdigit() else ("other", " ", part) for part in statuses.split("; ")]
    return "exit status:\n" + "\n".join(f"  {number:5}  {meaning}" for number, _, meaning in parts)


def parse(parser: argparse.ArgumentParser, commands: Commands[Any], words: Sequence[str]) -> argparse.Namespace:
    """Options in front of the command are the command's, as systemctl takes them. Raises UsageError."""
    known: dict[str, argparse.ArgumentParser] = commands.choices
    options, left = parser.parse_known_args(_command_first(words, known))
    if left:
        raise UsageError(_not_known(options.command, known[options.command], left))
    return options


def near(word: str, words: Iterable[str]) -> str:
    """`; did you mean WORD?`, or nothing where none is near."""
    import difflib

    found = difflib.get_close_matches(word, sorted(words), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _command_first(words: Sequence[str], known: dict[str, argparse.ArgumentParser]) -> list[str]:
    """The words with the command in front, unless there is none."""
    with_value = {
        option
        for command in known.values()
        for action in command._actions
        for option in action.option_strings
        if action.nargs is None
    }
    at = 0
    while at < len(words) and words[at].startswith("-"):
        if words[at] in ("-h", "--help", "--version"):
            return list(words)
        at += 2 if words[at] in with_value else 1
    if at >= len(words):
        return list(words)
    if words[at] not in known:
        raise UsageError(f"there is no command {quoted(words[at])}{near(words[at], known)}; see vmservice --help")
    return [words[at], *words[:at], *words[at + 1 :]]


def _not_known(command: str, parser: argparse.ArgumentParser, left: Sequence[str]) -> str:
    """The sentence about the first word that the command has no use for."""
    for word in left:
        if word.startswith("-") and word != "--":
            option = word.partition("=")[0]
            near_option = near(option, parser._option_string_actions)
            return f"{command} has no option {_shown(option)}{near_option}; see vmservice {command} --help"
    return f"{command} takes no {quoted(left[0])}; see vmservice {command} --help"


def _shown(option: str) -> str:
    return option if option.isprintable() and len(option) <= 60 else quoted(option)
