"""All mistakes of a configuration at once, a sentence each, and none that only follows from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config import plain_toml
from vmservice.config.load import file_errors, load_config, read_config
from vmservice.errors import ConfigError

KERNEL = '[kernel]\npath = "/boot/vmlinuz"\n'
CPU_WORDS = "a whole number from 1 to 254"
SIZE_WORDS = 'a number of bytes, or a string like "512M" with K, M, G or T'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "demo.toml"


def told(file: Path, text: str) -> list[str]:
    """The sentences, without the path that each begins with."""
    file.write_text(text)
    _, errors = read_config("demo", str(file))
    sentences = [str(error) for error in errors]
    assert all(sentence.isprintable() and sentence.startswith(f"{file}: ") for sentence in sentences)
    return [sentence.removeprefix(f"{file}: ") for sentence in sentences]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            KERNEL + '[cpus]\nboot = 0\nmax = 300\n[memory]\nsize = "64MiB"\nprefault = 1\n[serial]\nmode = "x"\n',
            [
                f"cpus.boot is 0; expected {CPU_WORDS}",
                f"cpus.max is 300; expected {CPU_WORDS}",
                'memory.size is "64MiB"; expected "64M", a whole number with K, M, G or T',
                "memory.prefault is 1; expected true or false",
                'serial.mode is "x"; expected "journal", "tty", "file", "pty", "socket", "null" or "off"',
            ],
        ),
        (
            KERNEL + '[cpu]\nboot = 2\n[memory]\nsise = "1G"\nshraed = true\n[[disk]]\npath = "x"\n[[disk]]\nformat = "raw"\n',
            [
                "[cpu] is not a known section; did you mean [cpus]?",
                "memory.sise is not a known key; did you mean size?",
                "memory.shraed is not a known key; did you mean shared?",
                'disk[0].format is missing; expected "raw" or "qcow2": it is never guessed',
                "disk[1].path is missing; expected the path of a file",
            ],
        ),
        (
            KERNEL + '[serial]\nmode = "tty"\n[console]\nmode = "tty"\n[[disk]]\nname = "hvc"\nformat = "raw"\npath = "x"\n',
            [
                '[console] and [[disk]] are called "hvc"; expected a name of its own in disk[0].name',
                'serial.mode and console.mode are both "tty"; there is one terminal, for one of them',
            ],
        ),
        (
            '[firmware]\npath = "x"\n[smbios]\nserial = "ä"\n[credentials]\na = "b"\nc = 1\n[service]\nready = "guest"\n',
            [
                'service.ready is "guest"; expected "vmm" with [firmware]: only a guest that is started by [kernel] is told'
                " where to send its READY=1",
                "[smbios] is for a VM with [kernel]; a firmware makes tables of its own",
                'smbios.serial is "ä"; expected at most 64 printable characters of ASCII',
                "[credentials] is for a VM with [kernel]; a firmware makes SMBIOS tables of its own",
                'credentials."c" must be a string, or { file = "…" } with the path of a file that has it',
            ],
        ),
        (
            KERNEL + '[[port]]\nname = "a"\n[[port]]\nname = "a"\nmode = "file"\n[[port]]\nname = "hvc"\nconsole = 1\n',
            [
                'port[1].name is "a"; expected a name of its own; port[0].name is the same',
                'port[1].path is missing; mode "file" needs the file that the console is written to',
                'port[2].name is "hvc"; expected a name of its own: serial and hvc are the consoles\'',
                "port[2].console is 1; expected true or false",
            ],
        ),
        (
            KERNEL + '[[network]]\nmac = "1"\nmtu = 1\n[[network]]\nmode = "passt"\ntap = "t"\nforward = ["x", "80", "80"]\n',
            [
                'network[0].mac is "1"; expected six bytes as in "02:00:5e:00:53:01"',
                "network[0].mtu is 1; expected a whole number from 68 to 65535",
                'network[1].tap is "t"; expected none with mode = "passt"',
                'network[1].forward has "x"; expected ports from 1 to 65535, as in "8080:80/tcp" or "8000-8009:80-89/udp"',
                'network[1].forward has "80"; expected each port of the host once; 80/tcp is forwarded already',
            ],
        ),
        (
            KERNEL + "[memory]\nmergeable = true\n" + 2 * '[[disk]]\nformat = "qcow2"\npath = "x"\nserial = "s"\n',
            [
                'disk[0].serial is "s"; expected none with format = "qcow2": qemu-storage-daemon gives each disk the same',
                'memory.mergeable is true; expected false, for the disk disk0 is "qcow2": another process maps the memory',
                'disk[1].serial is "s"; expected none with format = "qcow2": qemu-storage-daemon gives each disk the same',
            ],
        ),
    ],
)
def test_all_mistakes_are_told(file: Path, text: str, sentences: list[str]) -> None:
    assert told(file, text) == sentences


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[kernel]\npth = "x"\n', "kernel.pth is not a known key; did you mean path?"),
        ('[kernal]\npath = "x"\n', "[kernal] is not a known section; did you mean [kernel]?"),
        ("kernel = 1\n", "kernel is 1; expected a section, [kernel]"),
        (KERNEL + '[service]\nready = "guest"\n[vsok]\n', "[vsok] is not a known section; did you mean [vsock]?"),
        (
            KERNEL + '[memory]\nsize = "4MB"\n[balloon]\nsize = "1G"\n',
            'memory.size is "4MB"; expected "4M", a whole number with K, M, G or T',
        ),
        (
            KERNEL + '[memry]\nsize = "4G"\n[balloon]\nsize = "1G"\n',
            "[memry] is not a known section; did you mean [memory]?",
        ),
        (KERNEL + "[cpus]\nboot = 4\nmax = 0\n", f"cpus.max is 0; expected {CPU_WORDS}"),
        (
            KERNEL + '[memory]\nsize = "8T"\nfile = 1\n',
            "memory.file is 1; expected a path of 1 to 4095 bytes",
        ),
        (
            KERNEL + '[console]\nmode = "File"\npath = "log"\n',
            'console.mode is "File"; expected "journal", "tty", "file", "pty", "socket", "null" or "off"',
        ),
        (
            KERNEL + '[[network]]\nmode = "past"\nforward = ["80"]\n',
            'network[0].mode is "past"; expected "tap" or "passt"',
        ),
        (KERNEL + '[[disk]]\nformat = "raw"\nfile = "x"\n', "disk[0].file is not a known key; did you mean memory.file?"),
        (KERNEL + "[smbios]\nuuid = 5\n", "smbios.uuid is 5; expected a string"),
    ],
)
def test_nothing_is_told_that_follows_from_a_mistake(file: Path, text: str, sentence: str) -> None:
    assert told(file, text) == [sentence]


def test_files_that_are_missing_are_all_told(file: Path, tmp_path: Path) -> None:
    file.write_text(
        '[kernel]\npath = "k"\ninitramfs = "i"\n[serial]\nmode = "file"\npath = "no/log"\n[credentials]\na = { file = "c" }\n'
        '[cloud-init]\nuser_data = "u"\n[[disk]]\nformat = "raw"\npath = "d"\n[[disk]]\nname = "e"\nformat = "raw"\n'
    )
    config, errors = read_config("demo", str(file))
    assert [str(error) for error in errors] == [f"{file}: disk[1].path is missing; expected the path of a file"]
    missing = 'is "{}", which does not exist'
    assert [str(error).removeprefix(f"{file}: ").replace(f"{tmp_path}/", "") for error in file_errors(config)] == [
        f"kernel.path {missing.format('k')}",
        f"kernel.initramfs {missing.format('i')}",
        'serial.path is "no/log", but there is no directory no',
        f'credentials."a".file {missing.format("c")}',
        f"disk disk0: path {missing.format('d')}",
        f"cloud-init.user_data {missing.format('u')}",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (KERNEL + "[kernel]\n", "is not valid TOML: [kernel] is there already (at line 3, column 8)"),
        (KERNEL + "[ kernel ] # again\n", "is not valid TOML: [ kernel ] is there already (at line 3, column 10)"),
        ("[[port]]\n[port]\n", "is not valid TOML: [port] is there already (at line 2, column 6)"),
        ("[cpus]\nboot = 1\nboot = 2\n", "is not valid TOML: boot is there twice (at line 3, column 9)"),
        ('[cpus]\nboot = 1\nboot = """\nsecret = 1"""\n', "is not valid TOML: a key is there twice (at line 4, column 14)"),
        ("a = {b = 1, b = 2}", "is not valid TOML: a is there twice (at line 1, column 18)"),
        ("[cpus]\nboot : 1\n", "is not valid TOML: expected '=' after a key in a key/value pair (at line 2, column 6)"),
        ("[cpus]\nboot = no\n", "is not valid TOML: invalid value (at line 2, column 8)"),
        ('[cpus]\nboot = "1\n', "is not valid TOML: a string is not closed on its line (at line 2, column 10)"),
        ("[cpus]\nboot = '\x07'\n", 'is not valid TOML: it has the character "\\u0007" (at line 2, column 9)'),
        ("a = " + "9" * 5000, "is not valid TOML: it has a number with too many digits (at line 1)"),
        ("a = " + "[" * 5000, "is nested too deeply"),
    ],
)
def test_what_is_no_toml_is_one_sentence_without_words_of_python(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config("demo", str(file))
    said = str(caught.value)
    assert said.startswith(f"the configuration {file} {fault}")
    assert "secret" not in said
    assert "sys." not in said
    assert "'kernel'" not in said


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("plain", [True, False])
def test_what_an_editor_of_windows_writes_is_accepted(file: Path, mark: bytes, end: bytes, plain: bool) -> None:
    lines = [b"# a comment", b"[kernel]", b"path = '/boot/vmlinuz'", b"[cpus]", b"boot = 2" if plain else b"boot = 0x2", b""]
    file.write_bytes(mark + end.join(lines))
    config = load_config("demo", str(file))
    assert config.kernel is not None
    assert (config.kernel.path, config.cpus.boot) == ("/boot/vmlinuz", 2)


@pytest.mark.parametrize("parser", ["plain", "tomllib"])
def test_a_lone_carriage_return_is_no_line_end(file: Path, parser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if parser == "tomllib":
        monkeypatch.setattr(plain_toml, "read", lambda text: None)
    file.write_bytes(b"[kernel]\rpath = '/x'\r")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_config("demo", str(file))
