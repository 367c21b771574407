"""What is wrong with a text that is no TOML, in words of TOML: some of tomllib's own are of Python. Imported at need only."""

from __future__ import annotations

from vmservice.errors import quoted

_BARE_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# sys.get_int_max_str_digits(), at its lowest.
_DIGITS_MAX = 640


def not_utf8(data: bytes, offset: int) -> str:
    """For a file with a byte at `offset` that is no part of a character; what follows the file's name."""
    if data.startswith(_UTF16_MARKS):
        return "is in UTF-16; it must be UTF-8"
    line = data.count(b"\n", 0, offset) + 1
    return f"is not UTF-8: line {line} has the byte {data[offset]:#04x}"


def fault(text: str, error: Exception) -> str:
    """For what tomllib says of the text; what follows the file's name."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    message, _, place = str(error).partition(" (at ")
    lines = text.split("\n")
    number, column = len(lines), len(lines[-1]) + 1
    if not place:
        number = next((index for index, line in enumerate(lines, 1) if _has_long_number(line)), 0)
        return f"is not valid TOML: it has a number with too many digits{f' (at line {number})' if number else ''}"
    if place.startswith("line "):
        number, column = (int(part) for part in place.rstrip(")").removeprefix("line ").split(", column "))
    return f"is not valid TOML: {_sentence(message, lines, number, column)} (at line {number}, column {column})"


def _sentence(message: str, lines: list[str], number: int, column: int) -> str:
    letter = f"{lines[number - 1]}\n"[column - 1 :][:1]
    line = lines[number - 1].strip()
    if message.startswith("Cannot declare ") and line.startswith("["):
        header = line.partition("]")[0] + ("]]" if line.startswith("[[") else "]")
        return f"{_shown(header)} is there already"
    if message == "Cannot overwrite a value" or message.startswith("Duplicate inline table key"):
        return f"{_key(line)} is there twice"
    if message.startswith(("Illegal character ", "Found invalid character ")):
        return "a string is not closed on its line" if letter == "\n" else f"it has the character {quoted(letter)}"
    if (
        message.startswith(("Cannot ", "Expected ", "Unterminated ", "Unclosed ", "Invalid ", "Unescaped "))
        and "(" not in message
    ):
        return message[0].lower() + message[1:]
    return "something is wrong with it"


def _key(line: str) -> str:
    """What the line gives a value to, where that is certain: the rest of the line may be secret."""
    key = line.partition("=")[0].strip()
    is_plain = key and _BARE_KEY.issuperset(key) and '"""' not in line and "'''" not in line
    return key if is_plain else "a key"


def _shown(header: str) -> str:
    return header if header.isprintable() and len(header) <= 60 else "a section"


def _has_long_number(line: str) -> bool:
    digits = 0
    for letter in line:
        digits = digits + 1 if letter.isdecimal() or letter == "_" else 0
        if digits > _DIGITS_MAX:
            return True
    return False
