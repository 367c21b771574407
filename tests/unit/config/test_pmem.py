"""`[[pmem]]`: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmservice.config.load import check_files, load_config
from vmservice.config.sections.pmem import PmemDevice
from vmservice.errors import ConfigError

PMEM = '[[pmem]]\npath = "data.img"\n'
MIB = 1 << 20


def load(folder: Path, text: str) -> list[PmemDevice]:
    (folder / "demo.toml").write_text(f'[kernel]\npath = "kernel"\n{text}')
    config = load_config("demo", str(folder / "demo.toml"))
    return [device for device in config.devices if isinstance(device, PmemDevice)]


def test_what_is_taken(tmp_path: Path) -> None:
    first, second = load(tmp_path, PMEM + '[[pmem]]\nname = "tools"\npath = "/srv/tools.img"\nreadonly = true\n')
    assert (first.name, first.path, first.readonly) == ("pmem0", f"{tmp_path}/data.img", False)
    assert (second.name, second.path, second.readonly) == ("tools", "/srv/tools.img", True)


WORDS = {
    "[[pmem]]\nreadonly = true": "pmem[0].path is missing; expected the path of a file",
    PMEM + "readonly = 1": "pmem[0].readonly is 1; expected true or false",
    PMEM + 'name = "a b"': ('pmem[0].name is "a b"; expected 1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit'),
    PMEM + 'name = "x"\n' + PMEM + 'name = "x"': 'two [[pmem]] are called "x"; expected a name of its own in pmem[1].name',
    PMEM + 'name = "rng"': '[rng] and [[pmem]] are called "rng"; expected a name of its own in pmem[0].name',
    5 * PMEM: "[[pmem]] is there 5 times; at most 4 are possible",
    PMEM + "size = 1": "pmem[0].size is not a known key; did you mean memory.size or balloon.size?",
}


@pytest.mark.parametrize("text", WORDS)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text + "\n")
    assert str(caught.value) == f"{tmp_path}/demo.toml: {WORDS[text]}"


def test_its_file_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    load(tmp_path, PMEM)
    config, file = load_config("demo", str(tmp_path / "demo.toml")), tmp_path / "data.img"

    def said() -> str:
        with pytest.raises(ConfigError) as caught:
            check_files(config)
        start, _, words = str(caught.value).partition(": pmem pmem0: ")
        assert start == f"{tmp_path}/demo.toml"
        return words.removeprefix(f"{file} ")

    assert said() == f'path is "{file}", which does not exist'
    file.mkdir()
    assert "a directory" in said()
    file.rmdir()
    os.mkfifo(file)
    assert said() == "is a FIFO; it must be a regular file or a block device"
    file.unlink()
    file.touch()
    assert said() == "has 0 bytes; expected a multiple of 2 MiB, such as 2097152"
    os.truncate(file, 3 * MIB)
    assert said() == "has 3145728 bytes; expected a multiple of 2 MiB, such as 4194304"
    os.truncate(file, 4 * MIB)
    check_files(config)
