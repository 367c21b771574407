"""`[[disk]]`: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config.load import check_files, load_config
from vmservice.config.sections.disk import PLUG, QCOW2_PLUG, DiskDevice
from vmservice.errors import ConfigError

RAW = '[[disk]]\nformat = "raw"\npath = "root.raw"\n'
QCOW2 = '[[disk]]\nformat = "qcow2"\npath = "root.qcow2"\n'


def load(folder: Path, text: str, cpus: str = "") -> list[DiskDevice]:
    file = folder / "demo.toml"
    file.write_text(f'[kernel]\npath = "/boot/vmlinuz"\n{cpus}{text}')
    return [device for device in load_config("demo", str(file)).devices if isinstance(device, DiskDevice)]


def values(disk: DiskDevice) -> list[object]:
    return [getattr(disk, name) for name in disk.__slots__]


def test_the_defaults(tmp_path: Path) -> None:
    first, second = load(tmp_path, RAW + RAW, "[cpus]\nboot = 1\nmax = 3\n")
    assert (first.name, second.name) == ("disk0", "disk1")
    assert values(first) == [True, False, False, "disk0", f"{tmp_path}/root.raw", PLUG, 3, False, "disk0"]
    (many,) = load(tmp_path, RAW, "[cpus]\nboot = 1\nmax = 9\n")
    assert many.queues == 4


def test_another_process_serves_qcow2(tmp_path: Path) -> None:
    raw, qcow2 = load(tmp_path, RAW + QCOW2)
    assert (raw.plug, qcow2.plug) == (PLUG, QCOW2_PLUG)


def test_the_names_of_vm_and_disk_are_the_path_of_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk\[0\]\.name .* expected at most 6 letters"):
        file = tmp_path / "vm.toml"
        file.write_text(f'[kernel]\npath = "k"\n{QCOW2}name = "sevenof"\n')
        load_config(64 * "n", str(file))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r'disk disk0: path is ".*/root\.qcow2", which does not exist'),
        (b"raw", r'disk disk0: .*/root\.qcow2 is no image in qcow2; expected one, or format = "raw"'),
        (b"", "is no image in qcow2"),
    ],
)
def test_an_image_in_qcow2_is_looked_at(tmp_path: Path, content: bytes | None, said: str) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    if content is not None:
        (tmp_path / "root.qcow2").write_bytes(content)
    (tmp_path / "vm.toml").write_text(f'[kernel]\npath = "vmlinuz"\n{QCOW2}')
    config = load_config("demo", str(tmp_path / "vm.toml"))
    with pytest.raises(ConfigError, match=said):
        check_files(config)
    (tmp_path / "root.qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    check_files(config)


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    keys = 'name = "data"\nserial = "S 1"\ncache = "direct"\ndiscard = false\nreadonly = true\nqueues = 2\n'
    (disk,) = load(tmp_path, '[[disk]]\nformat = "raw"\npath = "/dev/vg/data"\n' + keys)
    assert values(disk) == [False, False, True, "data", "/dev/vg/data", PLUG, 2, True, "S 1"]
    (scratch,) = load(tmp_path, RAW + "ephemeral = true\n")
    assert scratch.ephemeral
    (unnamed,) = load(tmp_path, RAW + f'name = "{21 * "n"}"\n')
    assert unnamed.serial == "", "a name that is too long for a serial number is none"


LONG = 21 * "s"
WORDS = {
    '[[disk]]\npath = "x"': 'disk[0].format is missing; expected "raw" or "qcow2": it is never guessed',
    '[[disk]]\nformat = "raw"': "disk[0].path is missing; expected the path of a file",
    '[[disk]]\nformat = "vdi"\npath = "x"': 'disk[0].format is "vdi"; expected "raw" or "qcow2"',
    QCOW2 + 'serial = "s"': (
        'disk[0].serial is "s"; expected none with format = "qcow2": qemu-storage-daemon gives each disk the same'
    ),
    QCOW2 + "ephemeral = true": 'disk[0].ephemeral is true; expected false with format = "qcow2"',
    QCOW2 + "[memory]\nmergeable = true": (
        'memory.mergeable is true; expected false, for the disk disk0 is "qcow2": another process maps the memory'
    ),
    QCOW2 + "[memory]\nshared = false": (
        'memory.shared is false; expected true, for the disk disk0 is "qcow2": another process maps the memory'
    ),
    RAW + 'name = "a/b"': ('disk[0].name is "a/b"; expected 1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit'),
    RAW + 'name = "x"\n' + RAW + 'name = "x"': 'two [[disk]] are called "x"; expected a name of its own in disk[1].name',
    RAW + 'name = "disk1"\n' + RAW: 'two [[disk]] are called "disk1"; expected a name of its own in disk[1].name',
    RAW + f'serial = "{LONG}"': f'disk[0].serial is "{LONG}"; expected at most 20 printable ASCII characters',
    RAW + 'serial = "ü"': 'disk[0].serial is "ü"; expected at most 20 printable ASCII characters',
    RAW + 'serial = "a\\tb"': 'disk[0].serial is "a\\tb"; expected at most 20 printable ASCII characters',
    RAW + 'cache = "none"': 'disk[0].cache is "none"; expected "writeback" or "direct"',
    RAW + "queues = 5": "disk[0].queues is 5; expected a whole number from 0 to 4",
    RAW + "ephemeral = true\nreadonly = true": (
        "disk[0].ephemeral is true; expected false with readonly, for then nothing is written"
    ),
    RAW + 'ephemeral = true\ncache = "direct"': (
        'disk[0].cache is "direct"; expected "writeback" with ephemeral, for nothing that is written is kept'
    ),
    17 * RAW: "[[disk]] is there 17 times; at most 16 are possible",
    RAW + 'name = "rng"': '[rng] and [[disk]] are called "rng"; expected a name of its own in disk[0].name',
    RAW + 'name = "serial"': '[serial] and [[disk]] are called "serial"; expected a name of its own in disk[0].name',
    '[disk]\nformat = "raw"\npath = "x"': "disk is a table; expected sections, each as [[disk]]",
}


@pytest.mark.parametrize("text", WORDS)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text + "\n")
    assert str(caught.value) == f"{tmp_path}/demo.toml: {WORDS[text]}"


def check(folder: Path, text: str) -> None:
    load(folder, text.replace("/boot/vmlinuz", "kernel"))
    config = load_config("demo", str(folder / "demo.toml"))
    config.kernel = None
    check_files(config)


def test_its_file_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'demo\.toml: disk disk0: path is ".*/root\.raw", which does not exist$'):
        check(tmp_path, RAW)
    (tmp_path / "root.raw").mkdir()
    with pytest.raises(ConfigError, match=r"root\.raw (is a directory; it must be|cannot be opened: Is a directory)"):
        check(tmp_path, RAW)
    with pytest.raises(ConfigError, match=r"root\.raw is a directory; it must be a regular file or a block device"):
        check(tmp_path, RAW + "readonly = true\n")
    (tmp_path / "root.raw").rmdir()
    (tmp_path / "root.raw").touch()
    check(tmp_path, RAW)
