"""vmservice.toml(5) is equal to what the configuration's reader accepts: sections, keys, types, ranges, choices, defaults.

The reader is asked, not read: configurations are loaded, and what is asked of `TableReader` meanwhile is written down.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.man_page import Item, Part, read_page

from vmservice.config import core
from vmservice.config.load import Config, load_config, section_module, section_names
from vmservice.config.names import config_path
from vmservice.config.reader import UNITS, TableReader
from vmservice.errors import ConfigError
from vmservice.service.reload import _differences

PAGE = "vmservice.toml.5"
SECTIONS = read_page(PAGE)["SECTIONS"].parts

# Together they have every section, and what decides which keys are looked at, and each way that a default can turn out.
KERNEL = '[kernel]\npath = "/k"\n'
SAMPLES = (
    f"""{KERNEL}cmdline = "a"
[credentials]
one = "1"
[smbios]
serial = "1"
[[disk]]
path = "/d"
format = "raw"
[[disk]]
path = "/e"
format = "raw"
[[network]]
[[network]]
[[port]]
name = "p"
[[pmem]]
path = "/m"
[[pmem]]
path = "/n"
[vsock]
[balloon]
[console]
[cloud-init]
[rng]
""",
    f"""{KERNEL}[cpus]
boot = 2
[memory]
size = "1G"
mergeable = true
[serial]
mode = "null"
[smbios]
serial = "2"
[virtio]
transport = "mmio"
[credentials]
one = "2"
[vsock]
[service]
ready = "guest"
[[disk]]
name = "other-disk"
path = "/d"
format = "raw"
[[pmem]]
name = "other-pmem"
path = "/m"
[[network]]
name = "other-network"
""",
    f'{KERNEL}[[network]]\nmode = "passt"\n[[disk]]\npath = "/d"\nformat = "qcow2"\n',
    '[firmware]\npath = "/f"\n',
)
# These two differ in every key of the sections that stand for no device.
REFERENCE, DIFFERENT = (
    SAMPLES[1],
    '[firmware]\npath = "/f"\n[memory]\nsize = "2G"\n[cpus]\nmax = 9\n[service]\nready_timeout = 9\n',
)

# The method of the reader → how the page says what it takes.
TYPES = {
    "integer": "a whole number",
    "boolean": "true or false",
    "text": "a string",
    "texts": "an array of strings",
    "choice": '"',
    "size": "a size",
    "file": "a path",
    "required_file": "a path",
}


class Asked:
    """What the reader was asked for one key, over all samples: by method, with the arguments behind section and key."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    @property
    def methods(self) -> set[str]:
        return {method for method, _ in self.calls}

    @property
    def ranges(self) -> set[tuple[int, int]]:
        return {arguments[:2] for method, arguments in self.calls if method == "integer"}

    @property
    def choices(self) -> set[str]:
        return {choice for method, arguments in self.calls if method == "choice" for choice in arguments[0]}

    @property
    def default(self) -> str | None:
        """As the file would have it; None where there is none, or it depends on something else."""
        defaults = {arguments[-1] for method, arguments in self.calls if method not in ("texts", "file", "required_file")}
        return _toml(defaults.pop(), self.methods) if len(defaults) == 1 and "" not in defaults else None


def _toml(value: Any, methods: set[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if methods == {"size"} and value:
        letter, unit = next((letter, unit) for letter, unit in reversed(UNITS.items()) if value % unit == 0)
        return f'"{value // unit}{letter}"'
    return f'"{value}"' if isinstance(value, str) else str(value)


def plain_section(section: str) -> str:
    return section.partition("[")[0]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Asked]:
    """By section.key, from all samples."""
    found: dict[str, Asked] = {}

    def recording(method: str) -> Any:
        original = getattr(TableReader, method)

        def record(reader: TableReader, section: str, key: str, *arguments: Any, **named: Any) -> Any:
            place = f"{plain_section(section)}.{key}"
            found.setdefault(place, Asked()).calls.append((method, (*arguments, *named.values())))
            return original(reader, section, key, *arguments, **named)

        return record

    for method in TYPES:
        monkeypatch.setattr(TableReader, method, recording(method))
    for sample in SAMPLES:
        load(tmp_path, sample)
    # As one of the user's own, which has other defaults.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    users = Path(config_path("vm", user=True))
    users.parent.mkdir()
    users.write_text(SAMPLES[0])
    load_config("vm", str(users))
    return found


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "vm.toml"
    path.write_text(text)
    return load_config("vm", str(path))


def known_keys() -> dict[str, tuple[str, ...] | None]:
    """What the reader accepts, as it is written: [cpus] → boot, max."""
    modules = {name: section_module(name) for name in section_names()}
    headers = {name: f"[[{name}]]" if module.ARRAY else f"[{name}]" for name, module in modules.items()}
    keys = {f"[{name}]": keys for name, keys in core.KEYS.items()}
    return {**keys, **{headers[name]: module.KEYS for name, module in modules.items()}}


def documented(part: Part) -> dict[str, Item]:
    return {name: item for item in part.items for name in item.words("Cm")}


def every_item() -> Iterator[tuple[str, Item]]:
    """All keys of the page, as section.key."""
    for title, part in SECTIONS.items():
        for key, item in documented(part).items():
            yield f"{title.strip('[]')}.{key}", item


def test_it_has_every_section_and_no_other() -> None:
    assert set(SECTIONS) == set(known_keys())


@pytest.mark.parametrize("section", sorted(known_keys()))
def test_it_has_every_key_of_a_section_and_no_other(section: str) -> None:
    keys, page = known_keys()[section], documented(SECTIONS[section])
    if keys is None:
        assert not page
        assert SECTIONS[section].items[0].words("Ar") == ["NAME"]
    else:
        assert set(page) == set(keys)


def test_the_samples_ask_for_every_key(asked: dict[str, Asked]) -> None:
    """What no sample reaches is not held by the tests below: a new section belongs into SAMPLES."""
    keys = {f"{header.strip('[]')}.{key}" for header, keys in known_keys().items() for key in keys or ()}
    assert set(asked) == keys


def test_it_says_what_each_key_takes(asked: dict[str, Asked]) -> None:
    for place, item in every_item():
        key = asked[place]
        takes = item.text.partition("Takes ")[2]
        assert {TYPES[method] for method in key.methods if takes.startswith(TYPES[method])}, f"{place}: {item.text}"
        for low, high in key.ranges:
            assert f"from {low} to {high}" in takes, place
        if key.choices:
            assert set(re.findall(r'"([^"]+)"', takes.partition(".")[0])) == key.choices, place


def test_it_says_the_defaults(asked: dict[str, Asked]) -> None:
    """A literal one where the code has one; in words where it follows from something else."""
    for place, item in every_item():
        default = asked[place].default
        said = re.search(r"Defaults to (\"[^\"]*\"|\d+|true|false)\.(?: |$)", item.text)
        if default is not None:
            assert said is not None, f"{place} has the default {default}: {item.text}"
            assert said[1] == default, place
        else:
            assert said is None, f"{place}: {item.text}"


def test_it_says_which_keys_are_required(tmp_path: Path) -> None:
    """Those without which the file is refused. Of a key that only another one requires, the text says so."""
    required = set()
    for sample in SAMPLES:
        lines = sample.splitlines()
        for number, line in enumerate(lines):
            try:
                load(tmp_path, "\n".join(lines[:number] + lines[number + 1 :]))
            except ConfigError as error:
                missing = re.search(r": ([\w-]+)(?:\[\d+\])?\.(\w+) is missing", str(error))
                if missing is not None and line.startswith(missing[2]):
                    required.add(f"{missing[1]}.{missing[2]}")
    for place, item in every_item():
        words = [word for word in ("Required.", "Optional.", "Defaults to ") if f". {word}" in item.text]
        assert len(words) == 1, f"{place}: {item.text}"
        assert (words == ["Required."]) == (place in required), place


def test_it_says_what_a_reload_changes(tmp_path: Path) -> None:
    waiting = _differences(load(tmp_path, REFERENCE), load(tmp_path, DIFFERENT))
    for place, item in every_item():
        section, _, key = place.partition(".")
        if section in core.KEYS:
            is_live = f"[{section}]" not in waiting and place not in waiting
        else:
            is_live = key in section_module(section).LIVE
        assert is_live == ("A reload changes it." in item.text), place


def test_it_says_how_many_of_a_section_can_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    most: dict[str, int] = {}
    original = TableReader.several

    def several(reader: TableReader, array: str, limit: int) -> list[str]:
        most[f"[[{array}]]"] = limit
        return original(reader, array, limit)

    monkeypatch.setattr(TableReader, "several", several)
    load(tmp_path, SAMPLES[0])
    said = {title: re.findall(r"can occur at most (\d+) times\.", part.text) for title, part in SECTIONS.items()}
    assert {title: [str(limit)] for title, limit in most.items()} == {title: times for title, times in said.items() if times}


def test_it_says_how_large_memory_can_be() -> None:
    low, high = (re.findall(r"from (\d+)M to (\d+)T\.", documented(SECTIONS["[memory]"])["size"].text) or [("", "")])[0]
    assert int(low) << 20 == core.MEMORY_MIN_BYTES
    assert int(high) << 40 == core.MEMORY_MAX_BYTES


def test_its_examples_are_configurations_and_have_every_key(tmp_path: Path) -> None:
    examples = read_page(PAGE)["EXAMPLES"].literal
    shown: set[str] = set()
    for example in examples:
        whole = example if "[kernel]" in example or "[firmware]" in example else KERNEL + example
        load(tmp_path, whole)
        for section, value in tomllib.loads(whole).items():
            for one in value if isinstance(value, list) else [value]:
                shown |= {f"{section}.{key}" for key in one} if core.KEYS.get(section, ()) is not None else set()
    assert shown == {place for place, _ in every_item()}
