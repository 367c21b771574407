"""The sections that every VM has, as frozen objects that are right by themselves, and how they are read."""

from __future__ import annotations

import os

from vmservice.config.names import is_made_by_unit
from vmservice.errors import PATH_SHOWN_MAX, ConfigError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.reader import TableReader

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

SERIAL_NUMBER_MAX_LENGTH = 64

SHUTDOWN_TIMEOUT_DEFAULT_SEC = 120
SHUTDOWN_TIMEOUT_MAX_SEC = 86400
READY_TIMEOUT_DEFAULT_SEC = 300
READY_TIMEOUT_MAX_SEC = 86400

LOG_LEVELS = ("err", "warning", "notice", "info")  # the words of systemd's LogLevelMax=

_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")

CONSOLE_MODES = ("journal", "tty", "file", "pty", "socket", "null", "off")
# Where what the guest prints goes besides, from a console that somebody may type at.
CONSOLE_LOGS = ("journal", "file", "off")
LOGGED_MODES = ("pty", "socket")
TRANSPORTS = ("pci", "mmio")

# All keys of each section; None where its keys are names that the operator chooses.
KEYS: dict[str, tuple[str, ...] | None] = {
    "kernel": ("path", "initramfs", "cmdline"),
    "firmware": ("path",),
    "cpus": ("boot", "max"),
    "memory": ("size", "file", "mergeable", "hugepages", "prefault", "shared"),
    "serial": ("mode", "path", "log", "log_path"),
    "smbios": ("uuid", "serial"),
    "virtio": ("transport",),
    "credentials": None,
    "service": (
        "on_panic",
        "on_poweroff",
        "on_reset",
        "on_watchdog",
        "ready",
        "ready_timeout",
        "shutdown_timeout",
        "log_level",
    ),
}


class KernelConfig:
    """`[kernel]`: Linux, started by its PVH or its 64-bit entry. Paths are absolute; `initramfs` is None without one."""

    __slots__ = ("cmdline", "initramfs", "path")

    def __init__(self, path: str, initramfs: str | None, cmdline: str) -> None:
        self.path: Final = path
        self.initramfs: Final = initramfs
        self.cmdline: Final = cmdline


class FirmwareConfig:
    """`[firmware]`: a flat image that starts at the reset vector."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path: Final = path


class CpusConfig:
    """`[cpus]`: vCPUs at boot, and the ceiling for Resize; 1 <= boot <= max <= 254."""

    __slots__ = ("boot", "max")

    def __init__(self, boot: int, maximum: int) -> None:
        self.boot: Final = boot
        self.max: Final = maximum


class MemoryConfig:
    """`[memory]`: whole pages; `file` is a file or a directory that backs them, None for anonymous memory.

    `mergeable` offers them to KSM, `hugepages` are of 2 MiB, `prefault` has them all present before the guest runs, `shared`
    lets another process map them too, as a file always does.
    """

    __slots__ = ("file", "hugepages", "mergeable", "prefault", "shared", "size_bytes")

    def __init__(
        self,
        size_bytes: int,
        *,
        file: str | None = None,
        mergeable: bool = False,
        hugepages: bool = False,
        prefault: bool = False,
        shared: bool = False,
    ) -> None:
        self.shared: Final = shared
        self.size_bytes: Final = size_bytes
        self.file: Final = file
        self.mergeable: Final = mergeable
        self.hugepages: Final = hugepages
        self.prefault: Final = prefault


class ConsoleConfig:
    """The host's end of `[serial]`, `[console]` or a port.

    `mode` is one of CONSOLE_MODES, or None where the file leaves it to how the service was started; `path` is set for mode
    `file` only. `log` is one of CONSOLE_LOGS, beside LOGGED_MODES only; `log_path` is set for log `file` only.
    """

    __slots__ = ("log", "log_path", "mode", "path")

    def __init__(self, mode: str | None, path: str | None, log: str = "off", log_path: str | None = None) -> None:
        self.mode: Final = mode
        self.path: Final = path
        self.log: Final = log
        self.log_path: Final = log_path


class SmbiosConfig:
    """`[smbios]`: `uuid` are 16 bytes in the order in which they are written, or None: it then follows from the host and the
    VM's name. `serial` is empty where there is none."""

    __slots__ = ("serial", "uuid")

    def __init__(self, uuid: bytes | None = None, serial: str = "") -> None:
        self.uuid: Final = uuid
        self.serial: Final = serial


class ServiceConfig:
    """`[service]`: `on_poweroff` is exit or stay, `on_reset` reboot or exit, `on_panic` and `on_watchdog` those or pause.
    `log_level`, one of LOG_LEVELS, bounds what the VMM itself says. With `ready_by_guest` the VM is ready when its guest says
    so, which it must within `ready_timeout_sec`."""

    __slots__ = (
        "log_level",
        "on_panic",
        "on_poweroff",
        "on_reset",
        "on_watchdog",
        "ready_by_guest",
        "ready_timeout_sec",
        "shutdown_timeout_sec",
    )

    def __init__(
        self,
        on_poweroff: str,
        on_reset: str,
        shutdown_timeout_sec: int,
        on_panic: str = "exit",
        on_watchdog: str = "reboot",
        log_level: str = "info",
        *,
        ready_by_guest: bool = False,
        ready_timeout_sec: int = READY_TIMEOUT_DEFAULT_SEC,
    ) -> None:
        self.ready_by_guest: Final = ready_by_guest
        self.ready_timeout_sec: Final = ready_timeout_sec
        self.log_level: Final = log_level
        self.on_panic: Final = on_panic
        self.on_watchdog: Final = on_watchdog
        self.on_poweroff: Final = on_poweroff
        self.on_reset: Final = on_reset
        self.shutdown_timeout_sec: Final = shutdown_timeout_sec


def has_firmware(reader: TableReader) -> bool:
    """Whether the guest starts with a firmware, and not with a kernel."""
    return reader.has("firmware") and not reader.may_have("kernel")


def read_guest(reader: TableReader) -> tuple[KernelConfig | None, FirmwareConfig | None]:
    """None for both where neither is there, which is noted."""
    has_kernel, has_firmware = reader.has("kernel"), reader.has("firmware")
    rule = "one of them must say what the guest starts with"
    if has_kernel and has_firmware:
        reader.note("firmware", f"both [kernel] and [firmware] are there; {rule}")
    elif not has_kernel and not reader.may_have("firmware"):
        reader.note("kernel", f"neither [kernel] nor [firmware] is there; {rule}")
    firmware = FirmwareConfig(reader.required_file("firmware", "path")) if has_firmware else None
    if not has_kernel:
        return None, firmware
    cmdline = reader.text("kernel", "cmdline", "")
    if not cmdline.isprintable() or len(cmdline.encode()) > CMDLINE_MAX_BYTES:
        reader.refuse("kernel", "cmdline", f"one line of printable characters, at most {CMDLINE_MAX_BYTES} bytes")
    return KernelConfig(reader.required_file("kernel", "path"), reader.file("kernel", "initramfs"), cmdline), None


def read_cpus(reader: TableReader) -> CpusConfig:
    boot = reader.integer("cpus", "boot", 1, VCPUS_MAX, 1)
    maximum = reader.integer("cpus", "max", 1, VCPUS_MAX, boot)
    if boot > maximum:
        reader.refuse("cpus", "boot", f"at most cpus.max, which is {maximum}", ["cpus.max"])
    return CpusConfig(boot, max(boot, maximum))


def read_memory(reader: TableReader) -> MemoryConfig:
    file = reader.file("memory", "file")
    # A file may be sparse and lie on a disk: only its file system knows what it can hold.
    size_bytes = _read_memory_size(reader, may_exceed_host=file is not None or not reader.is_known("memory.file"))
    mergeable = reader.boolean("memory", "mergeable", False)
    hugepages = reader.boolean("memory", "hugepages", False)
    if hugepages and size_bytes % HUGE_PAGE_BYTES:
        reader.refuse("memory", "size", "a multiple of 2M, for memory.hugepages is true")
    if hugepages and file is not None:
        reader.refuse("memory", "hugepages", "false with memory.file, which may be a directory of hugetlbfs")
    if hugepages and mergeable:
        reader.refuse("memory", "hugepages", "false with memory.mergeable, for KSM merges no huge pages")
    prefault = reader.boolean("memory", "prefault", False)
    # A back end in another process can map it, and so can a later version of this program. KSM takes private memory only.
    shared = reader.boolean("memory", "shared", file is not None or not mergeable)
    if file is not None and not shared:
        reader.refuse("memory", "shared", "true with memory.file, for a file is always shared")
    return MemoryConfig(size_bytes, file=file, mergeable=mergeable, hugepages=hugepages, prefault=prefault, shared=shared)


def check_shared(reader: TableReader, memory: MemoryConfig, why: str) -> None:
    """Note memory that no other process can map, where one has to."""
    if not memory.shared:
        key, expected = ("mergeable", "false") if memory.mergeable else ("shared", "true")
        reader.refuse("memory", key, f"{expected}, {why}", ["memory.mergeable", "memory.shared"])


def _read_memory_size(reader: TableReader, *, may_exceed_host: bool) -> int:
    size_bytes = reader.size("memory", "size", MEMORY_DEFAULT_BYTES)
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if not MEMORY_MIN_BYTES <= size_bytes <= MEMORY_MAX_BYTES:
        expected = "a size from 2M to 8T"
    elif size_bytes % PAGE_BYTES:
        expected = f"a multiple of {PAGE_BYTES} bytes"
    elif not may_exceed_host and 0 < host_bytes < size_bytes:
        expected = f"at most the {host_bytes >> 20}M that this host has"
    else:
        return size_bytes
    reader.refuse("memory", "size", expected)
    return MEMORY_DEFAULT_BYTES


def read_console(reader: TableReader, section: str, default: str) -> ConsoleConfig:
    mode = reader.choice(section, "mode", CONSOLE_MODES, default)
    path = reader.file(section, "path")
    if mode == "file" and path is None:
        reader.lacks(section, "path", 'mode "file" needs the file that the console is written to')
    if mode != "file" and path is not None:
        reader.contradicts(section, "path", f'is only for mode "file"; the mode here is {mode or "not set"}', "mode")
    return ConsoleConfig(mode or None, path, *_read_console_log(reader, section, mode))


def _read_console_log(reader: TableReader, section: str, mode: str) -> tuple[str, str | None]:
    log = reader.choice(section, "log", CONSOLE_LOGS, "off")
    path = reader.file(section, "log_path")
    if log != "off" and mode not in LOGGED_MODES:
        reader.contradicts(section, "log", f'is only for mode "pty" or "socket"; the mode here is {mode or "not set"}', "mode")
    elif log == "file" and path is None:
        reader.lacks(section, "log_path", 'log "file" needs the file that is written to')
    if log != "file" and path is not None:
        reader.contradicts(section, "log_path", f'is only for log "file"; the log here is {log}', "log")
    return log, path


def read_service(reader: TableReader) -> ServiceConfig:
    ready_by_guest = reader.choice("service", "ready", ("vmm", "guest"), "vmm") == "guest"
    if ready_by_guest and has_firmware(reader):
        reader.refuse(
            "service",
            "ready",
            '"vmm" with [firmware]: only a guest that is started by [kernel] is told where to send its READY=1',
        )
    elif ready_by_guest and not reader.may_have("vsock"):
        reader.note("service.ready", 'service.ready is "guest", and the guest says so over vsock: add [vsock]')
    return ServiceConfig(
        reader.choice("service", "on_poweroff", ("exit", "stay"), "exit"),
        reader.choice("service", "on_reset", ("reboot", "exit"), "reboot"),
        reader.integer("service", "shutdown_timeout", 0, SHUTDOWN_TIMEOUT_MAX_SEC, SHUTDOWN_TIMEOUT_DEFAULT_SEC),
        reader.choice("service", "on_panic", ("reboot", "exit", "pause"), "exit"),
        reader.choice("service", "on_watchdog", ("reboot", "exit", "pause"), "reboot"),
        reader.choice("service", "log_level", LOG_LEVELS, "info"),
        ready_by_guest=ready_by_guest,
        ready_timeout_sec=reader.integer("service", "ready_timeout", 1, READY_TIMEOUT_MAX_SEC, READY_TIMEOUT_DEFAULT_SEC),
    )


def read_smbios(reader: TableReader) -> SmbiosConfig:
    if reader.has("smbios") and has_firmware(reader):
        reader.note("smbios", "[smbios] is for a VM with [kernel]; a firmware makes tables of its own")
    uuid = None
    text = reader.text("smbios", "uuid", "")
    if text:
        uuid = _uuid(text)
        if uuid is None:
            reader.refuse("smbios", "uuid", 'a UUID like "12345678-1234-4234-8234-123456789abc"')
        elif uuid in (bytes(16), b"\xff" * 16):
            reader.refuse("smbios", "uuid", "a UUID that is not all 0 or all f, which SMBIOS calls not present")
    serial = reader.text("smbios", "serial", "")
    if not (serial.isascii() and serial.isprintable()) or len(serial) > SERIAL_NUMBER_MAX_LENGTH:
        reader.refuse("smbios", "serial", f"at most {SERIAL_NUMBER_MAX_LENGTH} printable characters of ASCII")
    return SmbiosConfig(uuid, serial)


def _uuid(text: str) -> bytes | None:
    digits = text.replace("-", "")
    if [len(part) for part in text.split("-")] != [8, 4, 4, 4, 12] or not _HEX_DIGITS.issuperset(digits):
        return None
    return bytes.fromhex(digits)


def check_output(key: str, file: str | None) -> None:
    """ConfigError unless `file`, which `key` names, may be a file to write to."""
    if file is None:
        return
    check_folder(key, file)
    if os.path.isdir(file):
        raise ConfigError(f"{key} is {quoted(file, PATH_SHOWN_MAX)}, a directory; expected a file")


def check_folder(key: str, file: str) -> None:
    folder = os.path.dirname(file)
    if not os.path.isdir(folder) and not is_made_by_unit(folder):
        raise ConfigError(f"{key} is {quoted(file, PATH_SHOWN_MAX)}, but there is no directory {folder}")
