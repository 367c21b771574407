"""TOML as nearly every configuration is written: sections, and one plain value a line. Anything else is for Python's parser.

Importing tomllib takes longer than all else of a start together. `read` takes a text only where it is certain what TOML 1.0
says to it, so that the answer is tomllib's; it refuses nothing, for the sentences of refusals are tomllib's.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Section = dict[str, object]

_BARE_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_DIGITS_MAX = 18  # of a number that surely fits 64 bits


class _NotPlain(Exception):
    """Something for Python's parser."""


def read(text: str) -> dict[str, object] | None:
    """The parsed `text`, or None where it holds more than is known here, or anything that may be wrong."""
    tables: dict[str, object] = {}
    section: Section = tables
    try:
        for whole in text.split("\n"):
            # No tabs, no carriage returns, no control characters, which TOML allows in some places and not in others.
            if not whole.isprintable():
                return None
            line = whole.strip(" ")
            if not line or line[0] == "#":
                continue
            if line[0] == "[":
                section = _open_section(tables, line)
            else:
                _add_value(section, line)
    except _NotPlain:
        return None
    return tables


def _open_section(tables: dict[str, object], line: str) -> Section:
    """[name], which may be there once, or [[name]], each time one more; a comment may follow."""
    is_array = line.startswith("[[")
    name, closing, rest = line[1 + is_array :].partition("]]" if is_array else "]")
    _check_end(rest)
    if not closing or not name or not _BARE_KEY.issuperset(name):
        raise _NotPlain
    section: Section = {}
    if not is_array:
        if name in tables:
            raise _NotPlain
        tables[name] = section
        return section
    sections = tables.get(name)
    if sections is None:
        tables[name] = [section]
    elif isinstance(sections, list) and sections and isinstance(sections[0], dict):
        sections.append(section)
    else:  # a section, or an array that was written as a value
        raise _NotPlain
    return section


def _add_value(section: Section, line: str) -> None:
    key, rest = _take_key(line)
    if key in section:
        raise _NotPlain
    value, rest = _take_table(rest) if rest[:1] == "{" else _take_value(rest)
    _check_end(rest)
    section[key] = value


def _take_key(text: str) -> tuple[str, str]:
    """A key, bare or in quotes, and what follows the equals sign behind it."""
    if text[:1] in ("'", '"'):
        key, rest = _take_string(text)
        if not rest.lstrip(" ").startswith("="):
            raise _NotPlain
        return key, rest.lstrip(" ")[1:].lstrip(" ")
    key, equals, rest = text.partition("=")
    key = key.rstrip(" ")
    if not equals or not key or not _BARE_KEY.issuperset(key):
        raise _NotPlain
    return key, rest.lstrip(" ")


def _take_table(text: str) -> tuple[Section, str]:
    """An inline table, of values that are none."""
    table: Section = {}
    rest = text[1:].lstrip(" ")
    if rest.startswith("}"):
        return table, rest[1:]
    while True:
        key, rest = _take_key(rest)
        if key in table:
            raise _NotPlain
        table[key], rest = _take_value(rest)
        rest = rest.lstrip(" ")
        if rest.startswith("}"):
            return table, rest[1:]
        if not rest.startswith(","):
            raise _NotPlain
        rest = rest[1:].lstrip(" ")


def _take_value(text: str) -> tuple[object, str]:
    """A value, and what follows it."""
    if text[:1] in ("'", '"'):
        return _take_string(text)
    if text[:1] == "[":
        return _take_array(text)
    end = next((position for position, char in enumerate(text) if char in " ,]}#"), len(text))
    word, rest = text[:end], text[end:]
    if word in ("true", "false"):
        return word == "true", rest
    if not (word.isascii() and word.isdecimal()) or len(word) > _DIGITS_MAX or (word[0] == "0" and word != "0"):
        raise _NotPlain
    return int(word), rest


def _take_string(text: str) -> tuple[str, str]:
    """In either quotes, without escapes, on one line."""
    quote = text[0]
    value, closing, rest = text[1:].partition(quote)
    if not closing or "\\" in value or (not value and rest.startswith(quote)):  # three quotes begin several lines
        raise _NotPlain
    return value, rest


def _take_array(text: str) -> tuple[list[object], str]:
    """On one line, of values without arrays."""
    values: list[object] = []
    rest = text[1:].lstrip(" ")
    while not rest.startswith("]"):
        if rest.startswith("["):
            raise _NotPlain
        value, rest = _take_value(rest)
        values.append(value)
        rest = rest.lstrip(" ")
        if rest.startswith(","):
            rest = rest[1:].lstrip(" ")
        elif not rest.startswith("]"):
            raise _NotPlain
    return values, rest[1:]


def _check_end(rest: str) -> None:
    """Behind a value or a header only a comment may come."""
    rest = rest.lstrip(" ")
    if rest and rest[0] != "#":
        raise _NotPlain
