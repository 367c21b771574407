"""A parsed TOML file read key by key: each value has its type and range checked, and nothing unknown gets through."""

from __future__ import annotations

import os

from vmservice.errors import ConfigError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    # All keys that a section may have; None where its keys are names that the operator chooses.
    Sections = Mapping[str, Sequence[str] | None]

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE_MAX_DIGITS = 15
PATH_MAX_BYTES = 4095  # PATH_MAX of linux/limits.h counts the NUL
SHOWN_MAX_LENGTH = 60


class TableReader:
    """The sections of one configuration file. Every method raises ConfigError with the file, the key and what was expected."""

    def __init__(self, path: str, table: Mapping[str, object], sections: Sections, arrays: Container[str] = ()) -> None:
        """`path` is absolute; `sections` are all that may be there, with all their keys. Those in `arrays` may be there several
        times, each as [[name]], and are read as the sections "name[0]", "name[1]" and so on."""
        self.path = path
        self._directory = os.path.dirname(path)
        self._sections: dict[str, dict[str, object]] = {}
        for name, section in table.items():
            if name not in sections:
                raise ConfigError(f"{path}: {_unknown_section(name, section, sections, arrays)}")
            if name not in arrays:
                self._add(name, section, f"a section, [{name}]", sections[name], sections)
            elif isinstance(section, list):
                for number, item in enumerate(section):
                    self._add(f"{name}[{number}]", item, f"a section, [[{name}]]", sections[name], sections)
            else:
                raise ConfigError(f"{path}: {name} is {_shown(section)}; expected sections, each as [[{name}]]")

    def _add(self, name: str, section: object, expected: str, keys: Sequence[str] | None, sections: Sections) -> None:
        if not isinstance(section, dict):
            # Where the operator chooses the keys, what is there may be secret.
            found = "not" if keys is None else f"{_shown(section)}; expected"
            raise ConfigError(f"{self.path}: {name} is {found} {expected}")
        for key in section:
            if keys is not None and key not in keys:
                raise ConfigError(f"{self.path}: {_unknown_key(name, key, keys, sections)}")
        self._sections[name] = section

    def has(self, section: str) -> bool:
        return section in self._sections

    def whole(self, section: str) -> Mapping[str, object]:
        """What a section whose keys the operator chooses has, unchecked."""
        return self._sections.get(section, {})

    def several(self, array: str, most: int) -> list[str]:
        """The names of all sections that are there as [[array]], in their order; at most `most`."""
        names = [name for name in self._sections if name.startswith(f"{array}[")]
        if len(names) > most:
            raise ConfigError(f"{self.path}: [[{array}]] is there {len(names)} times; at most {most} are possible")
        return names

    def refusal(self, section: str, key: str, expected: str) -> ConfigError:
        """The error for a value that is there and wrong; `expected` is a noun phrase."""
        value = self._value(section, key)
        if value is None:
            return ConfigError(f"{self.path}: {section}.{key} is missing; expected {expected}")
        return ConfigError(f"{self.path}: {section}.{key} is {_shown(value)}; expected {expected}")

    def item_refusal(self, section: str, key: str, item: object, expected: str) -> ConfigError:
        """The same for one item of an array."""
        return ConfigError(f"{self.path}: {section}.{key} has {_shown(item)}; expected {expected}")

    def integer(self, section: str, key: str, lowest: int, highest: int, default: int) -> int:
        value = self._value(section, key)
        if value is None:
            return default
        if type(value) is not int or not lowest <= value <= highest:  # not isinstance: true is no number here
            raise self.refusal(section, key, f"a whole number from {lowest} to {highest}")
        return value

    def boolean(self, section: str, key: str, default: bool) -> bool:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refusal(section, key, "true or false")
        return value

    def text(self, section: str, key: str, default: str) -> str:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refusal(section, key, "a string")
        return value

    def texts(self, section: str, key: str) -> list[str]:
        """An array of strings, by default without any."""
        value = self._value(section, key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.refusal(section, key, "an array of strings")
        for item in value:
            if not isinstance(item, str):
                raise self.item_refusal(section, key, item, "strings only")
        return value

    def choice(self, section: str, key: str, choices: Sequence[str], default: str) -> str:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            quoted = [f'"{choice}"' for choice in choices]
            raise self.refusal(section, key, " or ".join((", ".join(quoted[:-1]), quoted[-1])))
        return value

    def size(self, section: str, key: str, default: int) -> int:
        """Bytes: a whole number of them, or a string with K, M, G or T."""
        value = self._value(section, key)
        if value is None:
            return default
        if type(value) is int and value >= 0:
            return value
        if isinstance(value, str) and value[-1:] in UNITS:
            digits = value[:-1]
            if digits.isascii() and digits.isdecimal() and len(digits) <= SIZE_MAX_DIGITS:
                return int(digits) * UNITS[value[-1]]
        raise self.refusal(section, key, 'a number of bytes, or a string like "512M" with K, M, G or T')

    def file(self, section: str, key: str) -> str | None:
        """An absolute path; a relative one starts at the folder of the configuration file."""
        value = self._value(section, key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value or len(os.fsencode(value)) > PATH_MAX_BYTES:
            raise self.refusal(section, key, f"a path of 1 to {PATH_MAX_BYTES} bytes")
        return os.path.join(self._directory, value)

    def required_file(self, section: str, key: str) -> str:
        file = self.file(section, key)
        if file is None:
            raise self.refusal(section, key, "the path of a file")
        return file

    def _value(self, section: str, key: str) -> object:
        return self._sections.get(section, {}).get(key)


def _shown(value: object) -> str:
    """The value as a sentence can hold it: one line, bounded, no control characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 128:  # Python refuses to print an integer of thousands of digits
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    if isinstance(value, str):
        return quoted(value, SHOWN_MAX_LENGTH)
    shown = str(value)
    return shown if len(shown) <= SHOWN_MAX_LENGTH else f"{shown[:SHOWN_MAX_LENGTH]}…"


def _unknown_section(name: str, section: object, sections: Sections, arrays: Container[str]) -> str:
    headers = {known: f"[[{known}]]" if known in arrays else f"[{known}]" for known in sections}
    if isinstance(section, dict | list):
        shown = f"[{_shown_name(name)}]" if isinstance(section, dict) else f"[[{_shown_name(name)}]]"
        return f"{shown} is not a known section; {_nearest(name, headers)}"
    homes = _homes(name, sections)
    advice = f"did you mean {' or '.join(homes)}?" if homes else _nearest(name, headers)
    return f"{_shown_name(name)} is not in a section; {advice}"


def _unknown_key(section: str, key: str, keys: Sequence[str], sections: Sections) -> str:
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
    return name if name.isprintable() and name and len(name) <= SHOWN_MAX_LENGTH else _shown(name)
