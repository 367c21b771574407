"""How a sentence shows a value that is wrong, and what may have been meant. Imported for such a sentence only."""

from __future__ import annotations

from vmservice.errors import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    Sections = Mapping[str, Sequence[str] | None]  # as in reader.py

SHOWN_MAX_LENGTH = 60

_UNITS = "KMGT"
_SIZE_WORDS = 'a number of bytes, or a string like "512M" with K, M, G or T'


def shown(value: object) -> str:
    """The value as a sentence can hold it: one line, bounded, no control characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print an integer of thousands of digits
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, str):
        return quoted(value, SHOWN_MAX_LENGTH)
    text = str(value)
    return text if len(text) <= SHOWN_MAX_LENGTH else f"{text[:SHOWN_MAX_LENGTH]}…"


def size(value: object) -> str:
    """What would be right in place of `value`, which is no size: the same one as it is written here, where that is clear."""
    if isinstance(value, float) and value.is_integer() and 0 <= value < 1 << 63:
        return f"a whole number of bytes, {int(value)}"
    if not isinstance(value, str):
        return _SIZE_WORDS
    letters = value.strip().upper()
    digits = letters.rstrip("IBYTES ").rstrip(_UNITS).rstrip()
    unit = letters[len(digits) :].strip().removesuffix("BYTES").removesuffix("BYTE").removesuffix("B").removesuffix("I").strip()
    number = digits.replace(",", ".")
    if len(number) > 15 or not number.isascii() or not number.replace(".", "", 1).isdecimal() or unit not in ("", *_UNITS):
        return _SIZE_WORDS
    if not unit:
        return f"{int(number)} without quotes, or a string with K, M, G or T" if number.isdecimal() else _SIZE_WORDS
    right = _written(float(number), unit)
    return f'"{right}", a whole number with K, M, G or T' if right else _SIZE_WORDS


def _written(number: float, unit: str) -> str:
    """Without a point, in a smaller unit where need be; empty where that is no whole number of KiB."""
    position = _UNITS.index(unit)
    while not number.is_integer() and position > 0:
        number, position = number * 1024, position - 1
    return f"{int(number)}{_UNITS[position]}" if number.is_integer() else ""


def unknown_section(name: str, section: object, sections: Sections, arrays: Container[str]) -> str:
    headers = {known: f"[[{known}]]" if known in arrays else f"[{known}]" for known in sections}
    if isinstance(section, dict | list):
        header = f"[{_shown_name(name)}]" if isinstance(section, dict) else f"[[{_shown_name(name)}]]"
        return f"{header} is not a known section; {_nearest(name, headers)}"
    homes = _homes(name, sections)
    advice = f"did you mean {' or '.join(homes)}?" if homes else _nearest(name, headers)
    return f"{_shown_name(name)} is not in a section; {advice}"


def unknown_key(section: str, key: str, keys: Sequence[str], sections: Sections) -> str:
    wrong = f"{section}.{_shown_name(key)} is not a known key"
    homes = _homes(key, sections)
    return (
        f"{wrong}; did you mean {' or '.join(homes)}?"
        if homes
        else f"{wrong}; {_nearest(key, {known: known for known in keys})}"
    )


def _homes(key: str, sections: Sections) -> list[str]:
    """Where the key is known, as section.key."""
    return [f"{home}.{key}" for home, keys in sections.items() if keys is not None and key in keys]


def _nearest(name: str, known: Mapping[str, str]) -> str:
    """What the operator may have meant, as the file has it: the nearest known name where one is near, else all of them."""
    from difflib import get_close_matches

    for near in get_close_matches(name[:SHOWN_MAX_LENGTH].lower(), list(known), n=1, cutoff=0.5):
        return f"did you mean {known[near]}?"
    return f"known are {', '.join(known.values())}"


def _shown_name(name: str) -> str:
    return name if name.isprintable() and name and len(name) <= SHOWN_MAX_LENGTH else shown(name)
