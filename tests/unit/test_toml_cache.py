"""The cache of parsed TOML: never stale, never trusted, never in the way."""

from __future__ import annotations

import marshal
import os
import sys
import time
from binascii import crc32
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmservice import config, toml_cache
from vmservice.config import load_config
from vmservice.errors import ConfigError

LATER_NS = 10_000_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the cache; the clock is ten seconds on, so that a file just written may be cached."""
    directory = tmp_path / "cache"
    directory.mkdir()
    monkeypatch.setenv("CACHE_DIRECTORY", str(directory))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + LATER_NS)
    return directory


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every text that really was parsed."""
    texts: list[bytes] = []
    real = config._parse

    def parse(path: str, data: bytes) -> dict[str, object]:
        texts.append(data)
        return real(path, data)

    monkeypatch.setattr(config, "_parse", parse)
    return texts


def write(path: Path, boot: int) -> None:
    path.write_text(f'[kernel]\npath = "/k"\n[cpus]\nboot = {boot}\n')


def boot_vcpus(path: Path) -> int:
    return load_config("demo", str(path)).cpus.boot


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "demo.toml", 2)
    return tmp_path / "demo.toml"


def test_parsed_once_and_served_after(file: Path, cache: Path, parsed: list[bytes]) -> None:
    assert [boot_vcpus(file) for _ in range(3)] == [2, 2, 2]
    assert len(parsed) == 1
    assert os.listdir(cache) == ["demo.toml.cache"]
    assert (cache / "demo.toml.cache").stat().st_mode & 0o777 == 0o600


def test_a_hit_does_not_import_the_parser(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot_vcpus(file)
    monkeypatch.setitem(sys.modules, "tomllib", None)  # an import of it would fail now
    assert boot_vcpus(file) == 2


def test_without_a_directory_there_is_no_cache(file: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "relative", "/nonexistent/cache"):
        monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
        if value is not None:
            monkeypatch.setenv("CACHE_DIRECTORY", value)
        assert boot_vcpus(file) == 2
    assert len(parsed) == 4


def test_first_of_several_directories(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", f"{cache}:/nonexistent")
    boot_vcpus(file)
    assert os.listdir(cache) == ["demo.toml.cache"]


def test_changed_in_place_with_the_same_size_and_mtime(file: Path, cache: Path) -> None:
    before = file.stat()
    assert boot_vcpus(file) == 2
    deadline = time.monotonic() + 10
    while file.stat().st_ctime_ns == before.st_ctime_ns and time.monotonic() < deadline:  # until the file system's clock ticks
        write(file, 3)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert boot_vcpus(file) == 3


def test_replaced_by_rename(file: Path, cache: Path) -> None:
    assert boot_vcpus(file) == 2
    new = file.with_suffix(".new")
    write(new, 3)
    os.utime(new, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    new.rename(file)
    assert boot_vcpus(file) == 3


def test_every_part_of_the_key_counts(file: Path, cache: Path) -> None:
    status = file.stat()
    toml_cache.store(str(file), status, {"a": 1}, time.time_ns())
    assert toml_cache.load(str(file), status) == {"a": 1}
    assert toml_cache.load(f"{file.parent}/./demo.toml", status) is None

    class Changed:
        def __init__(self, field: str) -> None:
            self._field = field

        def __getattr__(self, name: str) -> int:
            value: int = getattr(status, name)
            return value + (name == self._field)

    for field in ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"):
        assert toml_cache.load(str(file), Changed(field)) is None  # type: ignore[arg-type]


def test_a_file_that_changed_just_now_is_not_cached(file: Path, cache: Path) -> None:
    status = file.stat()
    for age_ns in (-1, 0, 1, 1_999_999_999):
        toml_cache.store(str(file), status, {}, status.st_ctime_ns + age_ns)
        assert os.listdir(cache) == []
    toml_cache.store(str(file), status, {}, status.st_ctime_ns + 2_000_000_000)
    assert os.listdir(cache) == ["demo.toml.cache"]


def test_a_file_that_changes_while_it_is_parsed_is_not_cached(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = config._parse

    def parse(path: str, data: bytes) -> dict[str, object]:
        Path(path).write_bytes(data + b"# more\n")
        return real(path, data)

    monkeypatch.setattr(config, "_parse", parse)
    assert boot_vcpus(file) == 2
    assert os.listdir(cache) == []


def test_a_table_from_the_cache_is_checked_like_any_other(file: Path, cache: Path, parsed: list[bytes]) -> None:
    write(file, 255)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cpus\.boot is 255"):
            boot_vcpus(file)
    assert len(parsed) == 1


def test_dates_are_not_cached(file: Path, cache: Path) -> None:
    file.write_text('[kernel]\npath = "/k"\ncmdline = 2026-11-25T07:00:00Z\n')
    with pytest.raises(ConfigError, match=r"kernel\.cmdline is 2026-11-25"):
        boot_vcpus(file)
    assert os.listdir(cache) == []


def sealed(payload: bytes) -> bytes:
    """A cache file with this payload, right in all else."""
    return toml_cache.HEADER.pack(toml_cache.MAGIC, sys.hexversion, crc32(payload)) + payload


def key(file: Path) -> tuple[str | int, ...]:
    status = file.stat()
    return (str(file), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


FORGED: Any = {"kernel": {"path": "/k"}, "cpus": {"boot": 9}}


def forged(file: Path) -> bytes:
    """A cache file that says what the configuration does not say: whoever reads it has 9 vCPUs."""
    return sealed(marshal.dumps((key(file), FORGED)))


def test_the_form_of_an_entry(file: Path, cache: Path) -> None:
    """What the damage below starts from: if this fails, the tests below prove nothing."""
    (cache / "demo.toml.cache").write_bytes(forged(file))
    (cache / "demo.toml.cache").chmod(0o600)
    assert boot_vcpus(file) == 9


@pytest.mark.parametrize(
    "kind", ["not a pair", "three", "no table", "other key", "no marshal", "cut", "other python", "other magic", "bad sum"]
)
def test_damaged_entries_are_ignored(file: Path, cache: Path, kind: str) -> None:
    good = forged(file)
    damaged = {
        "not a pair": sealed(marshal.dumps(FORGED)),
        "three": sealed(marshal.dumps((key(file), FORGED, 1))),
        "no table": sealed(marshal.dumps((key(file), [FORGED]))),
        "other key": sealed(marshal.dumps((key(file)[:-1], FORGED))),
        "no marshal": sealed(b"\xff garbage"),
        "cut": sealed(good[toml_cache.HEADER.size : -3]),
        "other python": good[:8] + b"\0\0\0\0" + good[12:],
        "other magic": b"X" + good[1:],
        "bad sum": good[:-1] + bytes([good[-1] ^ 1]),
    }[kind]
    (cache / "demo.toml.cache").write_bytes(damaged)
    (cache / "demo.toml.cache").chmod(0o600)
    assert boot_vcpus(file) == 2
    assert boot_vcpus(file) == 2  # from the entry that has replaced the damaged one


@settings(derandomize=True, max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_ignored(file: Path, cache: Path, data: st.DataObject) -> None:
    boot_vcpus(file)
    path = cache / "demo.toml.cache"
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert boot_vcpus(file) == 2


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_is_ignored(file: Path, cache: Path, mode: int) -> None:
    path = cache / "demo.toml.cache"
    path.write_bytes(forged(file))
    path.chmod(mode)
    assert boot_vcpus(file) == 2


def test_an_entry_of_another_user_is_ignored(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache / "demo.toml.cache"
    path.write_bytes(forged(file))
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert boot_vcpus(file) == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "huge"])
def test_things_that_are_no_cache_file(file: Path, cache: Path, tmp_path: Path, kind: str) -> None:
    path = cache / "demo.toml.cache"
    if kind == "link":
        target = tmp_path / "target"
        target.write_bytes(forged(file))
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch(0o600)
        os.truncate(path, toml_cache.MAX_SIZE_BYTES + 1)
    assert boot_vcpus(file) == 2
    leftovers = [name for name in os.listdir(cache) if name != "demo.toml.cache"]
    assert leftovers == []


def test_a_full_disk_leaves_nothing_behind(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if data.startswith(toml_cache.MAGIC):
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    assert boot_vcpus(file) == 2
    assert os.listdir(cache) == []
