"""The configuration: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vmservice.config.load import Config, check_files, load_config
from vmservice.config.names import check_name, config_path, configured_by
from vmservice.config.sections.port import PortsDevice
from vmservice.errors import ConfigError, UsageError, sentences

SIXTY = 60 * "a"
KERNEL = '[kernel]\npath = "/boot/vmlinuz"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "demo.toml"


def load(file: Path, text: str | bytes) -> Config:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config("demo", str(file))


def refusal(file: Path, text: str | bytes) -> str:
    """The one sentence, without the path it begins with or holds."""
    with pytest.raises(ConfigError) as caught:
        load(file, text)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message.removeprefix(f"{file}: ")


def test_huge_pages(file: Path) -> None:
    memory = load(file, KERNEL + '[memory]\nsize = "64M"\nhugepages = true\nprefault = true').memory
    assert (memory.size_bytes, memory.hugepages, memory.prefault) == (64 << 20, True, True)


NAME_WORDS = "1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit"
FILE_WORDS = 'port[0].path is missing; mode "file" needs the file that the console is written to'


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('size = "65M"', 'memory.size is "65M"; expected a multiple of 2M, for memory.hugepages is true'),
        (
            'file = "/dev/shm"',
            "memory.hugepages is true; expected false with memory.file, which may be a directory of hugetlbfs",
        ),
        ("mergeable = true", "memory.hugepages is true; expected false with memory.mergeable, for KSM merges no huge pages"),
    ],
)
def test_huge_pages_do_not_go_with_everything(file: Path, keys: str, words: str) -> None:
    assert refusal(file, f"{KERNEL}[memory]\nhugepages = true\n{keys}\n") == words


def test_everything_that_may_be_said(file: Path) -> None:
    config = load(
        file,
        """
        [kernel]
        path = "/boot/vmlinuz"
        initramfs = "/boot/initrd.img"
        cmdline = "console=ttyS0 root=/dev/vda"
        [cpus]
        boot = 2
        max = 4
        [memory]
        size = "64M"
        file = "/dev/shm"
        mergeable = true
        [serial]
        mode = "file"
        path = "/var/log/vm.log"
        [service]
        on_poweroff = "stay"
        on_reset = "exit"
        on_panic = "pause"
        on_watchdog = "exit"
        shutdown_timeout = 0
        """,
    )
    assert (config.name, config.path, config.firmware) == ("demo", str(file), None)
    assert config.kernel is not None
    assert (config.kernel.path, config.kernel.initramfs) == ("/boot/vmlinuz", "/boot/initrd.img")
    assert config.kernel.cmdline == "console=ttyS0 root=/dev/vda"
    assert (config.cpus.boot, config.cpus.max) == (2, 4)
    assert (config.memory.size_bytes, config.memory.file, config.memory.mergeable) == (64 << 20, "/dev/shm", True)
    assert (config.serial.mode, config.serial.path) == ("file", "/var/log/vm.log")
    assert (config.service.on_poweroff, config.service.on_reset, config.service.shutdown_timeout_sec) == ("stay", "exit", 0)
    assert (config.service.on_panic, config.service.on_watchdog) == ("pause", "exit")


def test_defaults(file: Path) -> None:
    config = load(file, KERNEL)
    assert config.kernel is not None
    assert (config.kernel.initramfs, config.kernel.cmdline) == (None, "")
    assert (config.cpus.boot, config.cpus.max) == (1, 1)
    assert (config.memory.size_bytes, config.memory.file, config.memory.mergeable) == (512 << 20, None, False)
    assert (config.memory.hugepages, config.memory.prefault) == (False, False)
    assert (config.serial.mode, config.serial.path) == (None, None)
    assert (config.service.on_poweroff, config.service.on_reset, config.service.shutdown_timeout_sec) == ("exit", "reboot", 120)
    assert (config.service.on_panic, config.service.on_watchdog) == ("exit", "reboot")


def test_max_follows_boot(file: Path) -> None:
    assert load(file, KERNEL + "[cpus]\nboot = 254").cpus.max == 254
    assert load(file, KERNEL + "[cpus]\nmax = 3").cpus.boot == 1


def test_relative_paths_start_at_the_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[firmware]\npath = "bios.bin"\n[serial]\nmode = "file"\npath = "../log"')
    monkeypatch.chdir(file.parent)
    config = load_config("demo", "demo.toml")
    assert config.path == str(file)
    assert config.firmware is not None
    assert config.firmware.path == f"{file.parent}/bios.bin"
    assert config.serial.path == f"{file.parent}/../log"


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        ("2097152", 2 << 20),
        ('"2048K"', 2 << 20),
        ('"2M"', 2 << 20),
        ('"0002M"', 2 << 20),
        ("0x400000", 4 << 20),
    ],
)
def test_sizes(file: Path, value: str, size_bytes: int) -> None:
    assert load(file, f"{KERNEL}[memory]\nsize = {value}").memory.size_bytes == size_bytes


def test_file_backed_memory_may_exceed_the_hosts(file: Path) -> None:
    assert load(file, KERNEL + '[memory]\nsize = "8T"\nfile = "/srv/ram"').memory.size_bytes == 8 << 40
    message = refusal(file, KERNEL + '[memory]\nsize = "8T"')
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert message == f'memory.size is "8T"; expected at most the {host >> 20}M that this host has'


SIZE_WORDS = 'a number of bytes, or a string like "512M" with K, M, G or T'
UNIT_WORDS = "a whole number with K, M, G or T"
CPU_WORDS = "a whole number from 1 to 254"


@pytest.mark.parametrize(
    ("section", "key", "value", "shown", "expected"),
    [
        ("cpus", "boot", "0", "0", CPU_WORDS),
        ("cpus", "boot", "255", "255", CPU_WORDS),
        ("cpus", "boot", "-1", "-1", CPU_WORDS),
        ("cpus", "boot", "true", "true", CPU_WORDS),
        ("cpus", "boot", "1.0", "1.0", CPU_WORDS),
        ("cpus", "boot", '"1"', '"1"', CPU_WORDS),
        ("cpus", "boot", "[1]", "an array", CPU_WORDS),
        ("cpus", "boot", "{a = 1}", "a table", CPU_WORDS),
        ("cpus", "boot", "0x" + "f" * 5000, "a number of 20000 bits", CPU_WORDS),
        ("cpus", "max", "0", "0", CPU_WORDS),
        ("cpus", "max", "255", "255", CPU_WORDS),
        ("cpus", "boot", "2\nmax = 1", "2", "at most cpus.max, which is 1"),
        ("memory", "size", "0", "0", "a size from 2M to 8T"),
        ("memory", "size", '"1M"', '"1M"', "a size from 2M to 8T"),
        ("memory", "size", '"2047K"', '"2047K"', "a size from 2M to 8T"),
        ("memory", "size", '"9T"', '"9T"', "a size from 2M to 8T"),
        ("memory", "size", "2097153", "2097153", "a multiple of 4096 bytes"),
        ("memory", "size", '"4097K"', '"4097K"', "a multiple of 4096 bytes"),
        ("memory", "size", "-1", "-1", SIZE_WORDS),
        ("memory", "size", "true", "true", SIZE_WORDS),
        ("memory", "size", '"M"', '"M"', SIZE_WORDS),
        ("memory", "size", '""', '""', SIZE_WORDS),
        ("memory", "size", '"64m"', '"64m"', f'"64M", {UNIT_WORDS}'),
        ("memory", "size", '"64MiB"', '"64MiB"', f'"64M", {UNIT_WORDS}'),
        ("memory", "size", '"64 M"', '"64 M"', f'"64M", {UNIT_WORDS}'),
        ("memory", "size", '"2gb"', '"2gb"', f'"2G", {UNIT_WORDS}'),
        ("memory", "size", '"1.5G"', '"1.5G"', f'"1536M", {UNIT_WORDS}'),
        ("memory", "size", '"0,5 TiB"', '"0,5 TiB"', f'"512G", {UNIT_WORDS}'),
        ("memory", "size", '"0.3K"', '"0.3K"', SIZE_WORDS),
        ("memory", "size", '"64"', '"64"', "64 without quotes, or a string with K, M, G or T"),
        ("memory", "size", '"0"', '"0"', "0 without quotes, or a string with K, M, G or T"),
        ("memory", "size", "1e9", "1000000000.0", "a whole number of bytes, 1000000000"),
        ("memory", "size", "1.5", "1.5", SIZE_WORDS),
        ("memory", "size", '"-1M"', '"-1M"', SIZE_WORDS),
        ("memory", "size", '"6 4M"', '"6 4M"', SIZE_WORDS),
        ("memory", "size", '"٦٤M"', '"٦٤M"', SIZE_WORDS),  # digits, but not ASCII ones
        ("memory", "size", '"0000000000000064M"', '"0000000000000064M"', SIZE_WORDS),
        ("memory", "mergeable", "1", "1", "true or false"),
        ("memory", "hugepages", '"2M"', '"2M"', "true or false"),
        ("memory", "prefault", "0", "0", "true or false"),
        ("memory", "mergeable", '"yes"', '"yes"', "true or false"),
        ("memory", "file", "1", "1", "a path of 1 to 4095 bytes"),
        ("memory", "file", '""', '""', "a path of 1 to 4095 bytes"),
        ("serial", "mode", '"ttyS0"', '"ttyS0"', '"journal", "tty", "file", "pty", "socket", "null" or "off"'),
        ("serial", "mode", "1", "1", '"journal", "tty", "file", "pty", "socket", "null" or "off"'),
        ("serial", "mode", '["tty"]', "an array", '"journal", "tty", "file", "pty", "socket", "null" or "off"'),
        ("service", "on_poweroff", '"reboot"', '"reboot"', '"exit" or "stay"'),
        ("service", "on_reset", "2026-11-25", "2026-11-25", '"reboot" or "exit"'),
        ("service", "on_panic", '"stay"', '"stay"', '"reboot", "exit" or "pause"'),
        ("service", "on_watchdog", "1", "1", '"reboot", "exit" or "pause"'),
        ("service", "shutdown_timeout", "86401", "86401", "a whole number from 0 to 86400"),
        ("service", "shutdown_timeout", "-1", "-1", "a whole number from 0 to 86400"),
        ("service", "shutdown_timeout", "1.5", "1.5", "a whole number from 0 to 86400"),
    ],
)
def test_refused_value(file: Path, section: str, key: str, value: str, shown: str, expected: str) -> None:
    message = refusal(file, f"{KERNEL}[{section}]\n{key} = {value}\n")
    assert message == f"{section}.{key} is {shown}; expected {expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[kernel]", "kernel.path is missing; expected the path of a file"),
        ("[firmware]", "firmware.path is missing; expected the path of a file"),
        ("[kernel]\npath = 1", "kernel.path is 1; expected a path of 1 to 4095 bytes"),
        ('[kernel]\npath = "a\\u0000b"', 'kernel.path is "a\\u0000b"; expected a path of 1 to 4095 bytes'),
        (f'[firmware]\npath = "{"a" * 5000}"', f'firmware.path is "{SIXTY}…"; expected a path of 1 to 4095 bytes'),
        (KERNEL + "cmdline = 1", "kernel.cmdline is 1; expected a string"),
        (
            KERNEL + 'cmdline = "a\\nb"',
            'kernel.cmdline is "a\\nb"; expected one line of printable characters, at most 65535 bytes',
        ),
        (
            KERNEL + f'cmdline = "{"a" * 65536}"',
            f'kernel.cmdline is "{SIXTY}…"; expected one line of printable characters, at most 65535 bytes',
        ),
        (
            KERNEL + '[firmware]\npath = "b"',
            "both [kernel] and [firmware] are there; one of them must say what the guest starts with",
        ),
        ("[cpus]", "neither [kernel] nor [firmware] is there; one of them must say what the guest starts with"),
        (
            KERNEL + '[serial]\nmode = "file"',
            'serial.path is missing; mode "file" needs the file that the console is written to',
        ),
        (
            KERNEL + '[serial]\nmode = "tty"\npath = "/x"',
            'serial.path is only for mode "file"; the mode here is tty',
        ),
        (KERNEL + '[serial]\npath = "/x"', 'serial.path is only for mode "file"; the mode here is not set'),
        (KERNEL + '[serial]\nlog = "file"', 'serial.log is only for mode "pty" or "socket"; the mode here is not set'),
        (
            KERNEL + '[console]\nmode = "journal"\nlog = "file"',
            'console.log is only for mode "pty" or "socket"; the mode here is journal',
        ),
        (KERNEL + '[console]\nmode = "pty"\nlog = "pty"', 'console.log is "pty"; expected "journal", "file" or "off"'),
        (
            KERNEL + '[console]\nmode = "pty"\nlog = "file"',
            'console.log_path is missing; log "file" needs the file that is written to',
        ),
        (
            KERNEL + '[serial]\nmode = "socket"\nlog = "journal"\nlog_path = "/x"',
            'serial.log_path is only for log "file"; the log here is journal',
        ),
        (
            KERNEL + '[[port]]\nname = "a"\nlog = "journal"',
            'port[0].log is "journal"; expected "off", or console = true: a stream of bytes has no log',
        ),
        (KERNEL + "[cpu]\nboot = 1", "[cpu] is not a known section; did you mean [cpus]?"),
        (
            KERNEL + "[[zzz]]",
            "[[zzz]] is not a known section; known are [kernel], [firmware], [cpus], [memory], [serial], [smbios], [virtio],"
            " [credentials], [service], [console], [[port]], [rng], [balloon], [[network]], [[disk]], [cloud-init], [[pmem]],"
            " [vsock]",
        ),
        (KERNEL + "[cpus]\nbot = 1", "cpus.bot is not a known key; did you mean boot?"),
        (KERNEL + "[cpus]\nBOOT = 1", "cpus.BOOT is not a known key; did you mean boot?"),
        (KERNEL + "[cpus]\nzzz = 1", "cpus.zzz is not a known key; known are boot, max"),
        (KERNEL + '[cpus]\nsize = "1G"', "cpus.size is not a known key; did you mean memory.size or balloon.size?"),
        (
            KERNEL + '[service]\n"a\\u001bb" = 1',
            'service."a\\u001Bb" is not a known key; known are on_panic, on_poweroff, on_reset, on_watchdog,'
            " ready, ready_timeout, shutdown_timeout, log_level",
        ),
        ("cpus = 2", "cpus is 2; expected a section, [cpus]"),
        ("[[cpus]]", "cpus is an array; expected a section, [cpus]"),
        ("size = 2", "size is not in a section; did you mean memory.size or balloon.size?"),
        (
            'path = "/boot/vmlinuz"',
            "path is not in a section; did you mean kernel.path or firmware.path or serial.path or console.path or port.path"
            " or disk.path or pmem.path?",
        ),
        (
            KERNEL + '[serial]\nmode = "tty"\n[console]\nmode = "tty"',
            'serial.mode and console.mode are both "tty"; there is one terminal, for one of them',
        ),
        (
            KERNEL + '[console]\nmode = "file"',
            'console.path is missing; mode "file" needs the file that the console is written to',
        ),
        (KERNEL + '[virtio]\ntransport = "usb"', 'virtio.transport is "usb"; expected "pci" or "mmio"'),
        (KERNEL + "[rng]\nenabled = 1", "rng.enabled is 1; expected true or false"),
        (
            KERNEL + '[balloon]\nsize = "512M"',
            'balloon.size is "512M"; expected less than memory.size, which is 536870912 bytes',
        ),
        ("memry = 2", "memry is not in a section; did you mean [memory]?"),
        (KERNEL + '[port]\nname = "a"', "port is a table; expected sections, each as [[port]]"),
        ("port = 1", "port is 1; expected sections, each as [[port]]"),
        ("port = [1]", "port[0] is 1; expected a section, [[port]]"),
        (KERNEL + '[[port]]\nname = "a"\n[[port]]\nnmae = "b"', "port[1].nmae is not a known key; did you mean name?"),
        (KERNEL + "[[port]]", f"port[0].name is missing; expected {NAME_WORDS}"),
        (KERNEL + '[[port]]\nname = "../a"', f'port[0].name is "../a"; expected {NAME_WORDS}'),
        (KERNEL + f'[[port]]\nname = "{"a" * 65}"', f'port[0].name is "{SIXTY}…"; expected {NAME_WORDS}'),
        (
            KERNEL + '[[port]]\nname = "hvc"',
            'port[0].name is "hvc"; expected a name of its own: serial and hvc are the consoles\'',
        ),
        (
            KERNEL + '[[port]]\nname = "a"\n[[port]]\nname = "a"',
            'port[1].name is "a"; expected a name of its own; port[0].name is the same',
        ),
        (KERNEL + '[[port]]\nname = "a"\nmode = "file"', FILE_WORDS),
        (KERNEL + '[[port]]\nname = "a"\nconsole = 1', "port[0].console is 1; expected true or false"),
        (
            KERNEL + "".join(f'[[port]]\nname = "p{number}"\n' for number in range(31)),
            "[[port]] is there 31 times; at most 30 are possible",
        ),
        (
            KERNEL + '[console]\nmode = "tty"\n[[port]]\nname = "a"\nmode = "tty"',
            'console.mode and port[0].mode are both "tty"; there is one terminal, for one of them',
        ),
        (
            KERNEL + '[memory]\nfile = "/dev/shm"\nshared = false',
            "memory.shared is false; expected true with memory.file, for a file is always shared",
        ),
    ],
)
def test_refused_text(file: Path, text: str, expected: str) -> None:
    assert refusal(file, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[kernel\n", "(at line 1, column 8)"),
        ('[kernel]\npath = "/boot', "(at line 2, column 14)"),
        ('[kernel]\npath = "a"\npath = "b"', "(at line 3, column 11)"),
        (KERNEL + "[kernel]", "(at line 3, column 8)"),
        ("[kernel]\npath: /boot", "(at line 2, column 5)"),
        ("", "is empty"),
        (b"[kernel]\npath = '\xff'", "is not UTF-8: line 2 has the byte 0xff"),
        ("a = 1\n".encode("utf-16"), "is in UTF-16; it must be UTF-8"),
        ("a = " + "9" * 5000, "is not valid TOML: "),
        ("a = " + "[" * 5000, "is nested too deeply"),
        ("#" * (1 << 20) + "\n", "has 1048577 bytes; at most 1048576 are allowed"),
        ("\0", "(at line 1, column 1)"),
    ],
)
def test_text_that_is_no_toml(file: Path, text: str | bytes, expected: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"the configuration {file} ")
    assert expected in message


def test_no_such_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", f"{tmp_path}/demo.toml")
    assert str(caught.value) == f"there is no configuration for the VM demo: {tmp_path}/demo.toml does not exist"


def test_configuration_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"the configuration {tmp_path} is a directory"):
        load_config("demo", str(tmp_path))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"the configuration {tmp_path}/link does not exist"):
        load_config("demo", f"{tmp_path}/link")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *(("web.toml", "web"), ("web.toml.d/a.toml", "web"), ("a.b.toml", "a.b"), ("common.toml.d/x.toml", "common")),
        *(("common.d/a.toml", None), ("web", None), (".web.toml", None), (".toml.d/a.toml", None), ("web.toml.dpkg-new", None)),
        *(("web.toml.d", None), ("web.toml.d/", None), ("web.toml.d/.a.toml", None), ("web.toml.d/README", None)),
    ],
)
def test_whose_configuration_a_file_is(file: str, name: str | None) -> None:
    """A folder of drop-ins without any is none: the unit's assertion says the same."""
    assert configured_by(file) == name


@pytest.mark.parametrize("name", ["a", "A-1_.b", "0", "x" * 64])
def test_names_that_are_allowed(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a/b", "..", "a b", "a\n", "é", "a\0", "x" * 65, "x" * 100000])
def test_names_that_are_not(name: str) -> None:
    for call in (lambda: check_name(name), lambda: config_path(name, user=False), lambda: load_config(name, "/nowhere")):
        with pytest.raises(UsageError, match="cannot be the name of a VM; it must be 1 to 64 of") as caught:
            call()
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


def test_where_the_configuration_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/cfg")
    assert config_path("web-1", user=False) == "/etc/vmservice/web-1.toml"
    assert config_path("web-1", user=True) == "/cfg/vmservice/web-1.toml"
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        assert config_path("web-1", user=True) == "/home/ada/.config/vmservice/web-1.toml"


def check(file: Path, text: str) -> str | None:
    """The sentences, a line each."""
    config = load(file, text)
    try:
        check_files(config)
    except ConfigError as error:
        return "\n".join(sentences(error))
    return None


def test_files_that_the_configuration_points_to(file: Path, tmp_path: Path) -> None:
    kernel, initramfs = tmp_path / "vmlinuz", tmp_path / "initrd"
    text = '[kernel]\npath = "vmlinuz"\ninitramfs = "initrd"\n'
    no_initramfs = f'{file}: kernel.initramfs is "{initramfs}", which does not exist'
    assert check(file, text) == f'{file}: kernel.path is "{kernel}", which does not exist\n{no_initramfs}'
    kernel.write_bytes(b"")
    assert check(file, text) == f'{file}: kernel.path is "{kernel}", which is empty\n{no_initramfs}'
    kernel.write_bytes(b"kernel")
    initramfs.mkdir()
    assert check(file, text) == (f'{file}: kernel.initramfs is "{initramfs}", which is a directory; it must be a regular file')
    initramfs.rmdir()
    initramfs.write_bytes(b"initramfs")
    assert check(file, text) is None
    assert check(file, '[firmware]\npath = "bios"') == f'{file}: firmware.path is "{tmp_path}/bios", which does not exist'


def test_places_that_the_configuration_writes_to(file: Path, tmp_path: Path) -> None:
    text = '[firmware]\npath = "demo.toml"\n'
    assert check(file, text + '[memory]\nfile = "."\n[serial]\nmode = "file"\npath = "log"') is None
    assert check(file, text + '[memory]\nfile = "none/ram"') == (
        f'{file}: memory.file is "{tmp_path}/none/ram", but there is no directory {tmp_path}/none'
    )
    assert check(file, text + '[memory]\nfile = "/dev/null"') == (
        f'{file}: memory.file is "/dev/null"; expected a regular file or a directory'
    )
    assert check(file, text + '[serial]\nmode = "file"\npath = "none/log"') == (
        f'{file}: serial.path is "{tmp_path}/none/log", but there is no directory {tmp_path}/none'
    )
    assert check(file, text + '[serial]\nmode = "file"\npath = "/tmp"') == (
        f'{file}: serial.path is "/tmp", a directory; expected a file'
    )


def test_a_kernel_gets_virtio_devices_and_a_firmware_only_what_it_asks_for(file: Path) -> None:
    def devices(text: str) -> tuple[str | None, list[str]]:
        config = load(file, text)
        return config.transport, [device.name for device in config.devices]

    assert devices(KERNEL) == ("pci", ["rng"])
    assert devices('[firmware]\npath = "/x"\n') == (None, [])
    assert devices('[firmware]\npath = "/x"\n[balloon]\nsize = "4M"\n') == ("pci", ["rng", "balloon"])
    assert devices('[firmware]\npath = "/x"\n[virtio]\ntransport = "mmio"\n[rng]\nenabled = false') == ("mmio", [])
    assert devices('[firmware]\npath = "bios"\n[[port]]\nname = "a"') == ("pci", ["ports", "rng"])
    everything = '[balloon]\nsize = 0\n[[port]]\nname = "a"\n[console]\nmode = "null"\n[[port]]\nname = "b"\n'
    assert devices(KERNEL + everything) == ("pci", ["hvc", "ports", "rng", "balloon"]), "not in the order of the file"


@pytest.mark.parametrize("document", ["README.md", "packaging/examples/demo.toml"])
def test_what_we_tell_people_to_write_is_accepted(file: Path, document: str) -> None:
    text = (Path(__file__).parents[3] / document).read_text()
    file.write_text(text.partition("```toml\n")[2].partition("```")[0] if document.endswith(".md") else text)
    config = load_config("demo", str(file))
    assert (config.cpus.boot, config.cpus.max, config.memory.size_bytes) == (1, 4, 512 << 20)
    assert (config.serial.mode, config.serial.log) == ("socket", "journal")


def test_the_log_of_a_console(file: Path) -> None:
    config = load(
        file,
        KERNEL + '[serial]\nmode = "socket"\nlog = "file"\nlog_path = "l"\n'
        '[[port]]\nname = "tty"\nlog = "journal"\nconsole = true',
    )
    assert (config.serial.log, config.serial.log_path) == ("file", str(file.parent / "l"))
    device = config.devices[0]
    assert isinstance(device, PortsDevice)
    assert (device.ports[0].output.log, device.ports[0].output.log_path) == ("journal", None)
    assert load(file, KERNEL).serial.log == "off"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[serial]\nmode = "pty"\nlog = "file"\nlog_path = "none/l"', "serial.log_path"),
        ('[console]\nmode = "pty"\nlog = "file"\nlog_path = "none/l"', "console.log_path"),
        ('[[port]]\nname = "a"\nconsole = true\nlog = "file"\nlog_path = "none/l"', "port[0].log_path"),
    ],
)
def test_the_folder_of_a_log_must_be_there(file: Path, text: str, key: str) -> None:
    bios = file.with_name("bios")
    bios.write_bytes(b"x")
    file.write_text(f'[firmware]\npath = "bios"\n{text}')
    with pytest.raises(ConfigError, match=re.escape(f'{key} is "{file.parent}/none/l", but there is no directory')):
        check_files(load_config("demo", str(file)))


def test_ports(file: Path) -> None:
    config = load(
        file,
        KERNEL + '[[port]]\nname = "org.qemu.guest_agent.0"\n[[port]]\nname = "log"\nmode = "file"\npath = "l"\nconsole = true',
    )
    device = config.devices[0]
    assert isinstance(device, PortsDevice)
    assert [(port.name, port.output.mode, port.output.path, port.is_console) for port in device.ports] == [
        ("org.qemu.guest_agent.0", "socket", None, False),
        ("log", "file", str(file.parent / "l"), True),
    ]


@pytest.mark.parametrize(
    ("keys", "shared"),
    [
        ("", True),
        ("shared = false", False),
        ("hugepages = true", True),
        ("mergeable = true", False),
        ("mergeable = true\nshared = true", True),
        ('file = "/dev/shm"', True),
        ('mergeable = true\nfile = "/dev/shm"', True),
    ],
)
def test_shared_memory(file: Path, keys: str, shared: bool) -> None:
    assert load(file, f"{KERNEL}[memory]\n{keys}").memory.shared is shared


def test_a_log_in_a_directory_that_only_the_unit_makes(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "firmware").write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    text = '[firmware]\npath = "firmware"\n[serial]\nmode = "file"\npath = "{}/log"\n'
    made = (
        "ada/.local/state/vmservice/web",
        "ada/.local/state/log/vmservice/web",
        "ada/.config/log/vmservice/web",
        "run/vmservice/a",
    )
    for folder in (
        "/var/log/vmservice/web",
        "/var/lib/vmservice/web",
        "/run/vmservice/web",
        *(f"{tmp_path}/{one}" for one in made),
    ):
        assert check(file, text.format(folder)) is None
    for folder in (
        "/var/log/vmservice/web/more",
        "/var/log/vmservice/.web",
        "/var/log/nosuch",
        f"{tmp_path}/ada/vmservice/web",
    ):
        assert f"there is no directory {folder}" in str(check(file, text.format(folder)))
