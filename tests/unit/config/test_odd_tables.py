"""Whatever the tables of a configuration and of its drop-ins are: sentences come of it, and never another exception."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from vmservice.config import core, names
from vmservice.config.load import read_config, section_module, section_names

KERNEL = '[kernel]\npath = "/boot/vmlinuz"\n'
SECTIONS = [
    "--init--",
    "__init__",
    "",
    "-",
    "disk-",
    "disk[0]",
    "disk[",
    "kernel.path",
    "Disk",
    "..",
    "a/b",
    "\0",
    "é",
    "x" * 300,
]
KEYS = ["a[b]", "disk[0]", "a.b", "", '"', "é", "\x1b", "x" * 300, "name", "path", "file"]
VALUES = ["0", "-1", "2", "2.5", "inf", "nan", "1" + 30 * "0", "true", "1979-05-27T07:32:00Z", "07:32:00", "[]", "[1]", "[[]]"]
VALUES += [
    "{}",
    "[{}]",
    '{ file = "x" }',
    "{ file = 1 }",
    "{ a = { b = 1 } }",
    '[{ name = "root" }]',
    '["tcp:80"]',
    '""',
    '"a"',
]
VALUES += [
    '"root"',
    '"disk0"',
    '"64M"',
    '"raw"',
    '"tap"',
    '"passt"',
    '"tty"',
    '"file"',
    '"socket"',
    r'"\u0000"',
    r'"\u001b[0m"',
]
VALUES += ['"10.0.0.1/24"', '"02:00:00:00:00:01"', f'"{5000 * "x"}"']


def odd_table(rng: random.Random, known: dict[str, list[str]]) -> str:
    """A file of sections, known and unknown, as they are written or in another form, with any value at any key."""
    lines = []
    for name in rng.sample([*known, *SECTIONS], rng.randrange(6)):
        keys = list(dict.fromkeys([*known.get(name, []), *rng.sample(KEYS, 2)]))
        entries = []
        for _ in range(rng.randrange(1, 4)):
            chosen = rng.sample(keys, min(len(keys), rng.randrange(6)))
            entries.append(f"{{ {', '.join(f'{json.dumps(key)} = {rng.choice(VALUES)}' for key in chosen)} }}")
        forms = [entries[0], f"[{', '.join(entries)}]", rng.choice(VALUES)]
        lines.append(f"{json.dumps(name)} = {rng.choices(forms, (5, 4, 1))[0]}\n")
    return "".join(lines)


def test_odd_tables_and_drop_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    rng = random.Random("odd")
    known = {name: list(keys or ()) for name, keys in core.KEYS.items()}
    known.update((name, list(section_module(name).KEYS)) for name in section_names())
    (tmp_path / "demo.toml.d").mkdir()
    own, drop_in = tmp_path / "demo.toml", tmp_path / "demo.toml.d/a.toml"
    with_mistakes = 0
    for _ in range(600):
        text = odd_table(rng, known)
        own.write_text(text if '"kernel"' in text else f"{text}{KERNEL}")
        drop_in.write_text(odd_table(rng, known))
        said = read_config("demo", str(own))[1]
        assert all(str(error).isprintable() and str(error).startswith(str(tmp_path)) for error in said), said
        with_mistakes += bool(said)
    assert 300 < with_mistakes < 600


@pytest.mark.parametrize("section", ["--init--", "-", "disk-", "-disk", "cloud--init"])
def test_a_section_that_is_no_word_is_not_known(tmp_path: Path, section: str) -> None:
    (tmp_path / "demo.toml").write_text(f"{KERNEL}[{section}]\n")
    (said,) = read_config("demo", str(tmp_path / "demo.toml"))[1]
    assert str(said).startswith(f"{tmp_path}/demo.toml: [{section}] is not a known section; ")
