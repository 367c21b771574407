"""A manual page's source as its parts, so that tests can hold it equal to what it describes.

It knows of mdoc(7) what the pages in packaging/ have, not more.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PACKAGING = Path(__file__).parents[2] / "packaging"

_ESCAPES = (("\\(dq", '"'), ("\\(aq", "'"), ("\\&", ""), ("\\-", "-"), ("\\e", "\\"), ("\\(->", "->"))
# Macros whose arguments are shown as they are; `Fl` and `Xr` add something.
_PLAIN = frozenset(("Ar", "Cm", "Ev", "Fl", "Ic", "It", "Li", "Lk", "Nm", "No", "Ns", "Pa", "Sx", "Sy", "Xr"))
# Those that put something around their arguments: `Oo` until `Oc`, the others until the end of the line.
_BEGINS = {"Oo": "[", "Op": "[", "Pq": "(", "Ql": "'", "Dq": '"'}
_ENDS = {"Op": "]", "Pq": ")", "Ql": "'", "Dq": '"'}
_CLOSING = frozenset(".,:;)]?!")


@dataclass
class Item:
    """One `.It` of a list: `head` is its macro line without `.It`, `text` what is below it, nested lists included."""

    head: str
    text: str = ""
    items: list[Item] = field(default_factory=list)

    @property
    def title(self) -> str:
        return plain(f".It {self.head}")

    def words(self, macro: str) -> list[str]:
        """The arguments of all `macro`s of the head; `|` and commas stand between names."""
        return words(self.head, macro)


@dataclass
class Part:
    """What is below a `.Sh` or a `.Ss`: `source` are its lines outside of lists, `literal` its `.Bd -literal` blocks."""

    title: str
    source: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    literal: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return _joined(self.source)


def words(line: str, macro: str) -> list[str]:
    """The arguments of all `macro`s of a macro line."""
    found, current = [], ""
    for word in _split(line):
        if word in _PLAIN or word in _BEGINS or word == "Oc":
            current = word
        elif current == macro and word not in ("|", ","):
            found.append(word)
    return found


def read_page(name: str) -> dict[str, Part]:
    """The page packaging/NAME by the titles of its `.Sh`."""
    page: dict[str, Part] = {}
    part = Part("")
    lists: list[list[Item]] = []  # those that are open, the innermost last
    literal: list[str] | None = None
    for line in (PACKAGING / name).read_text().splitlines():
        macro, _, rest = line.partition(" ")
        if macro == ".Ed":
            assert literal is not None
            part.literal.append("\n".join(literal) + "\n")
            literal = None
        elif literal is not None:
            literal.append(_unescaped(line))
        elif macro == ".Bd":
            literal = []
        elif macro == ".Sh":
            part = page[rest] = Part(rest)
            section = part
        elif macro == ".Ss":
            part = section.parts[rest] = Part(rest)
        elif macro == ".Bl":
            lists.append(lists[-1][-1].items if lists else part.items)
        elif macro == ".El":
            lists.pop()
        elif macro == ".It":
            lists[-1].append(Item(rest))
        else:
            _add_text(line, part, lists)
    return page


def plain(line: str) -> str:
    """One line of the source as a reader sees it."""
    if not line.startswith("."):
        return _unescaped(line)
    tokens = _split(line[1:])
    behind = ""
    while tokens and tokens[-1] in _CLOSING:
        behind = tokens.pop() + behind
    shown, glue, macro, enclosing = "", True, "", ""
    for token in tokens:
        if token in _BEGINS:
            shown, glue = f"{shown}{'' if glue else ' '}{_BEGINS[token]}", True
            enclosing = _ENDS.get(token, "") + enclosing
        elif token == "Oc":
            shown, glue = f"{shown}]", False
        elif token in _PLAIN:
            glue = glue or token == "Ns"
            macro = macro if token == "Ns" else token
        else:
            text = _unescaped(token)
            if macro == "Fl" and text != "|" and text not in _CLOSING:
                text = f"-{text}"
            if macro == "Xr" and text.isdecimal():
                text, glue = f"({text})", True
            shown += text if glue or text in _CLOSING else f" {text}"
            glue = False
    return shown + enclosing + behind


def _add_text(line: str, part: Part, lists: list[list[Item]]) -> None:
    if not lists:
        part.source.append(line)
    for items in lists:
        if items:
            items[-1].text = f"{items[-1].text} {plain(line)}".strip()


def _joined(lines: list[str]) -> str:
    return " ".join(plain(line) for line in lines if line not in (".Pp", ".Nm")).strip()


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters, lexer.escape, lexer.quotes = True, "", "", '"'
    return list(lexer)


def _unescaped(text: str) -> str:
    for escape, letter in _ESCAPES:
        text = text.replace(escape, letter)
    return re.sub(r"\\f.", "", text)
