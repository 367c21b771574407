"""What a configuration says, section by section: frozen, and right by itself once `vmservice.config` has read it.

Where these mention a list, such as LOG_LEVELS, it is there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class KernelConfig:
    """`[kernel]`: Linux, started by its 64-bit entry. Paths are absolute; `initramfs` is None without one."""

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
    """`[serial]` or `[console]`: `mode` is one of CONSOLE_MODES, or None where the file leaves it to how the service was
    started; `path` is set for mode `file` only."""

    __slots__ = ("mode", "path")

    def __init__(self, mode: str | None, path: str | None) -> None:
        self.mode: Final = mode
        self.path: Final = path


class PortConfig:
    """A `[[port]]`: a stream of bytes that the guest finds by `name`, or a console more if `is_console`. `mode` and `path` as
    those of a console."""

    __slots__ = ("is_console", "mode", "name", "path")

    def __init__(self, name: str, mode: str, path: str | None, *, is_console: bool = False) -> None:
        self.name: Final = name
        self.mode: Final = mode
        self.path: Final = path
        self.is_console: Final = is_console


class VirtioConfig:
    """`[console]`, `[[port]]`, `[rng]`, `[balloon]`, `[virtio]`: the devices that are virtio's, and whether on PCI or MMIO.

    `balloon_bytes` is what the guest is asked to lend back from its start, None for a machine without a balloon.
    """

    __slots__ = ("balloon_bytes", "console", "ports", "rng", "transport")

    def __init__(
        self,
        transport: str,
        console: ConsoleConfig,
        rng: bool,
        balloon_bytes: int | None,
        ports: tuple[PortConfig, ...] = (),
    ) -> None:
        self.ports: Final = ports
        self.transport: Final = transport
        self.console: Final = console
        self.rng: Final = rng
        self.balloon_bytes: Final = balloon_bytes


class ServiceConfig:
    """`[service]`: `on_poweroff` is exit or stay, `on_reset` reboot or exit, `on_panic` and `on_watchdog` those or pause.
    `log_level`, one of LOG_LEVELS, bounds what the VMM itself says."""

    __slots__ = ("log_level", "on_panic", "on_poweroff", "on_reset", "on_watchdog", "shutdown_timeout_sec")

    def __init__(
        self,
        on_poweroff: str,
        on_reset: str,
        shutdown_timeout_sec: int,
        on_panic: str = "exit",
        on_watchdog: str = "reboot",
        log_level: str = "info",
    ) -> None:
        self.log_level: Final = log_level
        self.on_panic: Final = on_panic
        self.on_watchdog: Final = on_watchdog
        self.on_poweroff: Final = on_poweroff
        self.on_reset: Final = on_reset
        self.shutdown_timeout_sec: Final = shutdown_timeout_sec


class Config:
    """One VM as its operator wants it. Exactly one of `kernel` and `firmware` is set; `virtio` is None without such devices."""

    __slots__ = ("cpus", "firmware", "kernel", "memory", "name", "path", "serial", "service", "virtio")

    def __init__(
        self,
        *,
        name: str,
        path: str,
        kernel: KernelConfig | None,
        firmware: FirmwareConfig | None,
        cpus: CpusConfig,
        memory: MemoryConfig,
        serial: ConsoleConfig,
        service: ServiceConfig,
        virtio: VirtioConfig | None,
    ) -> None:
        self.name: Final = name
        self.path: Final = path
        self.kernel: Final = kernel
        self.firmware: Final = firmware
        self.cpus: Final = cpus
        self.memory: Final = memory
        self.serial: Final = serial
        self.service: Final = service
        self.virtio: Final = virtio
