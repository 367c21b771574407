"""Several files of one VM as one: of each key the last one counts. Imported where there is more than one file."""

from __future__ import annotations

from vmservice.errors import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.config.reader import Tables


def merge(parts: Sequence[tuple[str, Tables]]) -> tuple[Tables, dict[str, tuple[str, str]]]:
    """The sections of all, in the order of the files, and where each of them, and each of its keys, is from: `Origins` in
    reader.py.

    An entry of an array is one of before with other values where that has its name; else it is one more.
    """
    tables: Tables = {}
    origins: dict[str, tuple[str, str]] = {}
    for file, part in parts:
        before = _names(tables)
        for label, section in part.items():
            place = _place(label, section, before, tables)
            tables.setdefault(place, {}).update(section)
            origins.setdefault(place, (file, label))
            origins.update((f"{place}.{key}", (file, label)) for key in section)
    return tables, origins


def by_key(tables: Tables, origins: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The file of each section.key, and of each `kind name` of a device, that of its path or else its first."""
    # Only of a section is the bracket an entry's: a key may have one too, where the operator chooses it.
    files = {key: file for key, (file, _) in origins.items() if "[" not in key.partition(".")[0]}
    for name in tables.get("credentials", {}):
        files[f"credentials.{quoted(name, 255)}.file"] = origins[f"credentials.{name}"][0]
    for (array, name), place in _names(tables).items():
        files[f"{array} {name}"] = (origins.get(f"{place}.path") or origins[place])[0]
    return files


def _names(tables: Tables) -> dict[tuple[str, str], str]:
    """(array, name) → section, of all entries. One without a name has its index as one, as when it is read: disk0."""
    names: dict[tuple[str, str], str] = {}
    for place, section in tables.items():
        array, bracket, number = place.partition("[")
        name = section.get("name", f"{array}{number.rstrip(']')}")
        if bracket and isinstance(name, str):
            names.setdefault((array, name), place)
    return names


def _place(label: str, section: dict[str, object], before: dict[tuple[str, str], str], tables: Tables) -> str:
    array, bracket, _ = label.partition("[")
    if not bracket:
        return label
    name = section.get("name")
    same = before.get((array, name)) if isinstance(name, str) else None
    return same or f"{array}[{sum(1 for place in tables if place.startswith(f'{array}['))}]"
