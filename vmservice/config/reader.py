"""A configuration read key by key: each value has its type and range checked, and nothing unknown gets through.

What is wrong is noted, and the reading goes on with the default, so that a person hears of all mistakes at once.
"""

from __future__ import annotations

import os

from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    # All keys that a section may have; None where its keys are names that the operator chooses.
    Sections = Mapping[str, Sequence[str] | None]
    # By section, the keys and values of one file; of an array the sections are "name[0]", "name[1]" and so on.
    Tables = dict[str, dict[str, object]]
    # By section and by section.key, where it was read from: the file, and the section there.
    Origins = Mapping[str, tuple[str, str]]

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE_MAX_DIGITS = 15
PATH_MAX_BYTES = 4095  # PATH_MAX of linux/limits.h counts the NUL


class Mistakes:
    """Those of one configuration, in the order in which they were found, and what is not known because of them."""

    __slots__ = ("errors", "lacks_section", "refused", "with_unknown_key")

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []
        self.refused: set[str] = set()  # section.key
        self.with_unknown_key: set[str] = set()  # sections
        self.lacks_section = False  # one that is there has a name that is not known, or is none

    def note(self, path: str, sentence: str) -> None:
        self.errors.append(ConfigError(f"{path}: {sentence}"))


def take_sections(
    path: str, table: Mapping[str, object], sections: Sections, arrays: Container[str], mistakes: Mistakes
) -> Tables:
    """What of the parsed file at `path` is known. `sections` are all that may be there, with all their keys; those in `arrays`
    may be there several times, each as [[name]]."""
    taken: Tables = {}
    for name, section in table.items():
        if name not in sections:
            from vmservice.config.hints import unknown_section

            mistakes.note(path, unknown_section(name, section, sections, arrays))
            mistakes.lacks_section = True
        elif name not in arrays:
            _take(path, taken, name, section, f"a section, [{name}]", sections[name], sections, mistakes)
        elif isinstance(section, list):
            for number, item in enumerate(section):
                _take(path, taken, f"{name}[{number}]", item, f"a section, [[{name}]]", sections[name], sections, mistakes)
        else:
            from vmservice.config.hints import shown

            mistakes.note(path, f"{name} is {shown(section)}; expected sections, each as [[{name}]]")
            mistakes.lacks_section = True
    return taken


def _take(
    path: str,
    taken: Tables,
    name: str,
    section: object,
    expected: str,
    keys: Sequence[str] | None,
    sections: Sections,
    mistakes: Mistakes,
) -> None:
    if not isinstance(section, dict):
        from vmservice.config.hints import shown

        # Where the operator chooses the keys, what is there may be secret.
        found = "not" if keys is None else f"{shown(section)}; expected"
        mistakes.note(path, f"{name} is {found} {expected}")
        mistakes.lacks_section = True
        return
    taken[name] = section
    if keys is None:
        return
    unknown = [key for key in section if key not in keys]
    if unknown:
        from vmservice.config.hints import unknown_key

        for key in unknown:
            mistakes.note(path, unknown_key(name, key, keys, sections))
        mistakes.with_unknown_key.add(name)
        taken[name] = {key: value for key, value in section.items() if key in keys}


class TableReader:
    """The sections of one configuration. Every method notes what is wrong with the file, the key and what was expected."""

    def __init__(self, path: str, tables: Tables, mistakes: Mistakes, origins: Origins | None = None) -> None:
        """`path` is absolute; `origins` has what is not from there."""
        self.path = path
        self._directory = os.path.dirname(path)
        self._sections = tables
        self._mistakes = mistakes
        self._origins = origins or {}

    def has(self, section: str) -> bool:
        return section in self._sections

    def may_have(self, section: str) -> bool:
        """Whether it is there, or may have been meant by one that is there and wrong."""
        return section in self._sections or self._mistakes.lacks_section

    def whole(self, section: str) -> Mapping[str, object]:
        """What a section whose keys the operator chooses has, unchecked."""
        return self._sections.get(section, {})

    def several(self, array: str, most: int) -> list[str]:
        """The names of all sections that are there as [[array]], in their order; at most `most`."""
        names = [name for name in self._sections if name.startswith(f"{array}[")]
        if len(names) > most:
            self.note(array, f"[[{array}]] is there {len(names)} times; at most {most} are possible")
        return names[:most]

    def note(self, about: str, sentence: str) -> None:
        """A mistake of the section or section.key `about`, in a sentence of its own."""
        self._mistakes.note(self._place(about)[0], sentence)

    def refuse(self, section: str, key: str, expected: str, beside: Sequence[str] = ()) -> None:
        """Note a value that is wrong or missing; `expected` is a noun phrase.

        Once for each key, and not where that would only follow from another mistake: of a key in `beside`, as section.key, by
        which it is judged.
        """
        name = f"{section}.{key}"
        if self._may_follow(name) or any(self._may_follow(other) for other in beside):
            return
        self._mistakes.refused.add(name)
        from vmservice.config.hints import shown

        value = self._value(section, key)
        found = "missing" if value is None else shown(value)
        path, label = self._place(name)
        self._mistakes.note(path, f"{label}.{key} is {found}; expected {expected}")

    def refuse_item(self, section: str, key: str, item: object, expected: str, beside: Sequence[str] = ()) -> None:
        """The same for one item of an array; there may be several."""
        if any(self._may_follow(other) for other in beside):
            return
        from vmservice.config.hints import shown

        path, label = self._place(f"{section}.{key}")
        self._mistakes.note(path, f"{label}.{key} has {shown(item)}; expected {expected}")

    def lacks(self, section: str, key: str, why: str) -> None:
        """Note a key that is missing though others need it; `why` says which."""
        if self.is_known(f"{section}.{key}"):
            self.note(section, f"{self.name(section, key)} is missing; {why}")

    def contradicts(self, section: str, key: str, fault: str, other: str) -> None:
        """Note a key that does not go with the key `other` of its section; `fault` follows its name."""
        if self.is_known(f"{section}.{other}"):
            self.note(f"{section}.{key}", f"{self.name(section, key)} {fault}")

    def integer(self, section: str, key: str, lowest: int, highest: int, default: int) -> int:
        value = self._value(section, key)
        if value is None:
            return default
        if type(value) is not int or not lowest <= value <= highest:  # not isinstance: true is no number here
            self.refuse(section, key, f"a whole number from {lowest} to {highest}")
            return default
        return value

    def boolean(self, section: str, key: str, default: bool) -> bool:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(section, key, "true or false")
            return default
        return value

    def text(self, section: str, key: str, default: str) -> str:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.refuse(section, key, "a string")
            return default
        return value

    def texts(self, section: str, key: str) -> list[str]:
        """An array of strings, by default without any."""
        value = self._value(section, key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.refuse(section, key, "an array of strings")
            return []
        for item in value:
            if not isinstance(item, str):
                self.refuse_item(section, key, item, "strings only")
        return [item for item in value if isinstance(item, str)]

    def choice(self, section: str, key: str, choices: Sequence[str], default: str) -> str:
        value = self._value(section, key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            quoted = [f'"{choice}"' for choice in choices]
            self.refuse(section, key, " or ".join((", ".join(quoted[:-1]), quoted[-1])))
            return default
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
        from vmservice.config.hints import size

        self.refuse(section, key, size(value))
        return default

    def file(self, section: str, key: str) -> str | None:
        """An absolute path; a relative one starts at the folder of the VM's own file."""
        value = self._value(section, key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value or len(os.fsencode(value)) > PATH_MAX_BYTES:
            self.refuse(section, key, f"a path of 1 to {PATH_MAX_BYTES} bytes")
            return None
        return os.path.join(self._directory, value)

    def required_file(self, section: str, key: str) -> str:
        """Empty where it is wrong or missing, which is noted."""
        file = self.file(section, key)
        if file is None:
            self.refuse(section, key, "the path of a file")
        return file or ""

    def is_known(self, name: str) -> bool:
        """Whether what is read of section.key is what was meant."""
        return not self._may_follow(name)

    def _may_follow(self, name: str) -> bool:
        """Whether section.key is wrong already, or not there and maybe written wrongly somewhere."""
        if name in self._mistakes.refused:
            return True
        section, _, key = name.rpartition(".")
        if self._value(section, key) is not None:
            return False
        if section in self._sections:
            return self._place(section)[1] in self._mistakes.with_unknown_key
        return self._mistakes.lacks_section

    def name(self, section: str, key: str) -> str:
        """section.key as the file has it that it is from."""
        return f"{self._place(f'{section}.{key}')[1]}.{key}"

    def _place(self, about: str) -> tuple[str, str]:
        """The file that has section.key, or else the section, and what the section is called there."""
        section = about.partition(".")[0]
        return self._origins.get(about) or self._origins.get(section) or (self.path, section)

    def _value(self, section: str, key: str) -> object:
        return self._sections.get(section, {}).get(key)
