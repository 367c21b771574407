"""What the operator asked for: NAME.toml, checked once, at the door, before anything is created.

A `Config` that exists is right by itself; `check_files` adds what it points to. Every refusal is one sentence that names the
file, the key and what was expected. Paths in the file may be relative: they start at the folder of the configuration.
"""

from __future__ import annotations

import os
import time

from vmservice import toml_cache
from vmservice.config_sections import (
    Config,
    ConsoleConfig,
    CpusConfig,
    FirmwareConfig,
    KernelConfig,
    MemoryConfig,
    PortConfig,
    ServiceConfig,
    VirtioConfig,
)
from vmservice.config_table import TableReader
from vmservice.errors import ConfigError, UsageError
from vmservice.files import RegularFile

NAME_MAX_LENGTH = 64
NAME_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
NAME_REST = NAME_FIRST | frozenset("_.-")

CONFIG_MAX_SIZE_BYTES = 1 << 20

# 255 is the broadcast id of a local APIC in xAPIC mode (Intel SDM vol. 3, 11.6.2), and the IOAPIC takes an id of its own.
VCPUS_MAX = 254

# Below 1 MiB lie the zero page, page tables, command line, ACPI tables and the firmware's low copy; a kernel comes above that.
# With less than 2 MiB no guest can start; what a given kernel needs beyond that is known when it is loaded, to the byte.
MEMORY_MIN_BYTES = 2 << 20
# One memory slot of KVM has at most 2^31 - 1 pages (KVM_MEM_MAX_NR_PAGES, linux/kvm_host.h); all above 4 GiB is one slot.
MEMORY_MAX_BYTES = 8 << 40
MEMORY_DEFAULT_BYTES = 512 << 20
PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20

# boot_params gives the command line 64 KiB of the low memory; the kernel's own limit is asked for when it is loaded.
CMDLINE_MAX_BYTES = 0xFFFF

SHUTDOWN_TIMEOUT_DEFAULT_SEC = 120
SHUTDOWN_TIMEOUT_MAX_SEC = 86400

LOG_LEVELS = ("err", "warning", "notice", "info")  # the words of systemd's LogLevelMax=

CONSOLE_MODES = ("journal", "tty", "file", "pty", "socket", "null", "off")
TRANSPORTS = ("pci", "mmio")

# virtio-console has 31 at most, as with QEMU. By its name a port is found in the guest, in the unit's RuntimeDirectory and in
# the journal, beside the two consoles.
PORTS_MAX = 30
PORT_NAMES_TAKEN = ("serial", "hvc")

SECTIONS = {
    "kernel": ("path", "initramfs", "cmdline"),
    "firmware": ("path",),
    "cpus": ("boot", "max"),
    "memory": ("size", "file", "mergeable", "hugepages", "prefault", "shared"),
    "serial": ("mode", "path"),
    "console": ("mode", "path"),
    "port": ("name", "mode", "path", "console"),
    "rng": ("enabled",),
    "balloon": ("size",),
    "virtio": ("transport",),
    "service": ("on_panic", "on_poweroff", "on_reset", "on_watchdog", "shutdown_timeout", "log_level"),
}
ARRAYS = ("port",)


def check_name(name: str) -> None:
    """UsageError unless `name` may be the NAME of a VM."""
    if not is_name(name):
        raise UsageError(
            f"{name[: 2 * NAME_MAX_LENGTH]!r} cannot be the name of a VM; "
            f"it must be 1 to {NAME_MAX_LENGTH} of A-Z a-z 0-9 _ . - and begin with a letter or digit"
        )


def is_name(name: str) -> bool:
    """Whether a VM, or a port of one, may be called so."""
    return 0 < len(name) <= NAME_MAX_LENGTH and name[0] in NAME_FIRST and NAME_REST.issuperset(name)


def config_path(name: str, *, user: bool) -> str:
    """Where the configuration of the VM `name` belongs: for the system instance, or for the user's own."""
    check_name(name)
    if not user:
        return f"/etc/vmservice/{name}.toml"
    home = os.environ.get("XDG_CONFIG_HOME", "")
    if not home.startswith("/"):  # XDG base directory specification: a relative path is to be ignored
        home = os.path.expanduser("~/.config")
    return f"{home}/vmservice/{name}.toml"


def load_config(name: str, path: str) -> Config:
    """The checked configuration of the VM `name` from the file at `path`; UsageError or ConfigError."""
    check_name(name)
    path = os.path.abspath(path)
    reader = TableReader(path, _read_table(name, path), SECTIONS, ARRAYS)
    kernel, firmware = _read_guest(reader)
    memory = _read_memory(reader)
    serial = _read_console(reader, "serial", "")
    virtio = _read_virtio(reader, memory.size_bytes, kernel is not None)
    _check_terminal(path, serial, virtio)
    return Config(
        name=name,
        path=path,
        kernel=kernel,
        firmware=firmware,
        cpus=_read_cpus(reader),
        memory=memory,
        serial=serial,
        virtio=virtio,
        service=ServiceConfig(
            reader.choice("service", "on_poweroff", ("exit", "stay"), "exit"),
            reader.choice("service", "on_reset", ("reboot", "exit"), "reboot"),
            reader.integer("service", "shutdown_timeout", 0, SHUTDOWN_TIMEOUT_MAX_SEC, SHUTDOWN_TIMEOUT_DEFAULT_SEC),
            reader.choice("service", "on_panic", ("reboot", "exit", "pause"), "exit"),
            reader.choice("service", "on_watchdog", ("reboot", "exit", "pause"), "reboot"),
            reader.choice("service", "log_level", LOG_LEVELS, "info"),
        ),
    )


def check_files(config: Config) -> None:
    """Open every file that the configuration points to; the first that is wrong is a ConfigError."""
    if config.kernel is not None:
        RegularFile(config.kernel.path, "kernel").close()
        if config.kernel.initramfs is not None:
            RegularFile(config.kernel.initramfs, "initramfs").close()
    if config.firmware is not None:
        RegularFile(config.firmware.path, "firmware image").close()
    memory = config.memory.file
    outputs: list[tuple[str, str | None]] = [("serial.path", config.serial.path)]
    if config.virtio is not None:
        outputs.append(("console.path", config.virtio.console.path))
        outputs += [(f"port[{number}].path", port.path) for number, port in enumerate(config.virtio.ports)]
    for key, file in (("memory.file", memory), *outputs):
        if file is not None and not os.path.isdir(os.path.dirname(file)):
            raise ConfigError(f"{config.path}: {key} is {file}, but there is no directory {os.path.dirname(file)}")
    if memory is not None and os.path.exists(memory) and not os.path.isdir(memory) and not os.path.isfile(memory):
        raise ConfigError(f"{config.path}: memory.file is {memory}; expected a regular file or a directory")
    for key, file in outputs:
        if file is not None and os.path.isdir(file):
            raise ConfigError(f"{config.path}: {key} is {file}, a directory; expected a file")


def _read_table(name: str, path: str) -> dict[str, object]:
    """The parsed file, from the cache where the file has not changed since."""
    try:
        file = RegularFile(path, "configuration")
    except ConfigError:
        if not os.path.lexists(path):
            raise ConfigError(f"there is no configuration for the VM {name}: {path} does not exist") from None
        raise
    with file:
        table = toml_cache.load(path, file.status)
        if table is not None:
            return table
        if file.size_bytes > CONFIG_MAX_SIZE_BYTES:
            raise ConfigError(
                f"the configuration {path} has {file.size_bytes} bytes; at most {CONFIG_MAX_SIZE_BYTES} are allowed"
            )
        table = _parse(path, file.read(CONFIG_MAX_SIZE_BYTES))
        now_ns = time.time_ns()
        after = os.fstat(file.fd)
        if (after.st_size, after.st_ctime_ns) == (file.status.st_size, file.status.st_ctime_ns):
            toml_cache.store(path, file.status, table, now_ns)
    return table


def _parse(path: str, data: bytes) -> dict[str, object]:
    import tomllib

    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the configuration {path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        ) from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"the configuration {path} is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError is one, and so is what int() says to a number of thousands of digits
        lines = text.split("\n")
        place = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
        message = str(error).replace("at end of document", place)
        raise ConfigError(f"the configuration {path} is not valid TOML: {message}") from None


def _read_guest(reader: TableReader) -> tuple[KernelConfig | None, FirmwareConfig | None]:
    if reader.has("kernel") == reader.has("firmware"):
        state = "both [kernel] and [firmware]" if reader.has("kernel") else "neither [kernel] nor [firmware]"
        raise ConfigError(f"{reader.path}: {state} is there; one of them must say what the guest starts with")
    if reader.has("firmware"):
        return None, FirmwareConfig(reader.required_file("firmware", "path"))
    cmdline = reader.text("kernel", "cmdline", "")
    if not cmdline.isprintable() or len(cmdline.encode()) > CMDLINE_MAX_BYTES:
        raise reader.refusal("kernel", "cmdline", f"one line of printable characters, at most {CMDLINE_MAX_BYTES} bytes")
    kernel = KernelConfig(reader.required_file("kernel", "path"), reader.file("kernel", "initramfs"), cmdline)
    return kernel, None


def _read_cpus(reader: TableReader) -> CpusConfig:
    boot = reader.integer("cpus", "boot", 1, VCPUS_MAX, 1)
    maximum = reader.integer("cpus", "max", 1, VCPUS_MAX, boot)
    if boot > maximum:
        raise reader.refusal("cpus", "boot", f"at most cpus.max, which is {maximum}")
    return CpusConfig(boot, maximum)


def _read_memory(reader: TableReader) -> MemoryConfig:
    size_bytes = reader.size("memory", "size", MEMORY_DEFAULT_BYTES)
    file = reader.file("memory", "file")
    if not MEMORY_MIN_BYTES <= size_bytes <= MEMORY_MAX_BYTES:
        raise reader.refusal("memory", "size", "a size from 2M to 8T")
    if size_bytes % PAGE_BYTES:
        raise reader.refusal("memory", "size", f"a multiple of {PAGE_BYTES} bytes")
    # A file may be sparse and lie on a disk: only its file system knows what it can hold.
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if file is None and 0 < host_bytes < size_bytes:
        raise reader.refusal("memory", "size", f"at most the {host_bytes >> 20}M that this host has")
    mergeable = reader.boolean("memory", "mergeable", False)
    hugepages = reader.boolean("memory", "hugepages", False)
    if hugepages and size_bytes % HUGE_PAGE_BYTES:
        raise reader.refusal("memory", "size", "a multiple of 2M, for memory.hugepages is true")
    if hugepages and file is not None:
        raise reader.refusal("memory", "hugepages", "false with memory.file, which may be a directory of hugetlbfs")
    if hugepages and mergeable:
        raise reader.refusal("memory", "hugepages", "false with memory.mergeable, for KSM merges no huge pages")
    prefault = reader.boolean("memory", "prefault", False)
    shared = reader.boolean("memory", "shared", file is not None)
    if file is not None and not shared:
        raise reader.refusal("memory", "shared", "true with memory.file, for a file is always shared")
    return MemoryConfig(size_bytes, file=file, mergeable=mergeable, hugepages=hugepages, prefault=prefault, shared=shared)


def _read_console(reader: TableReader, section: str, default: str) -> ConsoleConfig:
    mode = reader.choice(section, "mode", CONSOLE_MODES, default)
    path = reader.file(section, "path")
    if mode == "file" and path is None:
        raise ConfigError(
            f'{reader.path}: {section}.path is missing; mode "file" needs the file that the console is written to'
        )
    if mode != "file" and path is not None:
        raise ConfigError(f'{reader.path}: {section}.path is only for mode "file"; the mode here is {mode or "not set"}')
    return ConsoleConfig(mode or None, path)


def _read_ports(reader: TableReader) -> tuple[PortConfig, ...]:
    ports: dict[str, PortConfig] = {}
    for section in reader.several("port", PORTS_MAX):
        name = reader.text(section, "name", "")
        if not is_name(name):
            letters = "A-Z a-z 0-9 _ . - that begin with a letter or digit"
            raise reader.refusal(section, "name", f"1 to {NAME_MAX_LENGTH} of {letters}")
        if name in PORT_NAMES_TAKEN or name in ports:
            raise reader.refusal(section, "name", "a name of its own, also beside serial and hvc, which the consoles have")
        console = _read_console(reader, section, "socket")
        is_console = reader.boolean(section, "console", False)
        ports[name] = PortConfig(name, console.mode or "socket", console.path, is_console=is_console)
    return tuple(ports.values())


def _check_terminal(path: str, serial: ConsoleConfig, virtio: VirtioConfig | None) -> None:
    consoles = [("serial", serial.mode)]
    if virtio is not None:
        consoles.append(("console", virtio.console.mode))
        consoles += [(f"port[{number}]", port.mode) for number, port in enumerate(virtio.ports)]
    at_terminal = [f"{section}.mode" for section, mode in consoles if mode == "tty"]
    if len(at_terminal) > 1:
        raise ConfigError(f'{path}: {" and ".join(at_terminal[:2])} are both "tty"; there is one terminal, for one of them')


def _read_virtio(reader: TableReader, memory_bytes: int, is_default: bool) -> VirtioConfig | None:
    """A firmware gets such devices only where its configuration names one of them."""
    ports = _read_ports(reader)
    if not (is_default or ports or any(reader.has(section) for section in ("console", "rng", "balloon", "virtio"))):
        return None
    balloon_bytes = None
    if reader.has("balloon"):
        balloon_bytes = reader.size("balloon", "size", 0)
        if balloon_bytes % PAGE_BYTES or balloon_bytes >= memory_bytes:
            raise reader.refusal("balloon", "size", f"a multiple of {PAGE_BYTES} bytes, less than memory.size")
    return VirtioConfig(
        reader.choice("virtio", "transport", TRANSPORTS, "pci"),
        _read_console(reader, "console", "off"),
        reader.boolean("rng", "enabled", True),
        balloon_bytes,
        ports,
    )
