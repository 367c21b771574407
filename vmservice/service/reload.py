"""`systemctl reload`: the configuration is read again, and what can change in a running VM changes. All of it, or nothing.

That is the number of vCPUs and the size of a balloon that is there, if the file has others than before, and the section
[service]. The journal says what else is
different and waits for a restart.
"""

from __future__ import annotations

from vmservice.config import check_files, load_config
from vmservice.errors import ConfigError, VmmError
from vmservice.vm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config_sections import Config, ServiceConfig, VirtioConfig
    from vmservice.service.journal import Log
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.vm import Vm


class Reload:
    """Reloads for `vm`, which was built from `config`. `service` is the section [service] that holds now."""

    def __init__(self, vm: Vm, config: Config, log: Log, notifier: Notifier, status: Callable[[], str]) -> None:
        self.service: ServiceConfig = config.service
        self._vm = vm
        self._built_from = config
        self._boot_vcpus = config.cpus.boot
        self._balloon_bytes = _balloon_bytes(config)
        self._log = log
        self._notifier = notifier
        self._status = status
        self._under_way = False

    def start(self) -> None:
        """Tell the manager, do it, and tell the manager that it is done: at once, or when the guest has its vCPUs."""
        self._notifier.reloading()
        if self._under_way:
            self._end("a reload is under way already; nothing has changed")
            return
        try:
            done = self._apply()
        except VmmError as error:
            self._end(f"not reloaded, and nothing has changed: {error}")
            return
        if done:
            self._end()

    def _apply(self) -> bool:
        """False where the guest has to answer first. Raises before anything is changed."""
        new = load_config(self._built_from.name, self._built_from.path)
        if new.cpus.boot > self._vm.max_vcpus:
            raise ConfigError(
                f"{new.path}: cpus.boot is {new.cpus.boot}, and this VM can have {self._vm.max_vcpus} until it is restarted"
            )
        balloon_bytes = _balloon_bytes(new)
        if balloon_bytes is not None and balloon_bytes >= self._vm.memory_bytes:
            has = f"this VM has {self._vm.memory_bytes} bytes of memory until it is restarted"
            raise ConfigError(f"{new.path}: balloon.size is {balloon_bytes} bytes, and {has}")
        waiting = _differences(self._built_from, new)
        if waiting:
            check_files(new)
        resizing = None
        if new.cpus.boot != self._boot_vcpus and self._vm.state in (State.RUNNING, State.PAUSED):
            resizing = self._vm.resize(new.cpus.boot)
        self._vm.reconfigure(
            boot_vcpus=new.cpus.boot,
            on_reset=new.service.on_reset,
            on_panic=new.service.on_panic,
            on_watchdog=new.service.on_watchdog,
        )
        if balloon_bytes is not None and self._balloon_bytes is not None and balloon_bytes != self._balloon_bytes:
            self._vm.set_balloon(balloon_bytes)
            self._balloon_bytes = balloon_bytes
        self._boot_vcpus, self.service = new.cpus.boot, new.service
        self._log.limit(new.service.log_level)
        if waiting:
            self._log.info(f"different in {new.path}, and in force when the VM is restarted: {', '.join(waiting)}")
        if resizing is not None:
            self._under_way = True
            resizing.on_end = self._on_resized
        return resizing is None

    def _on_resized(self, error: VmmError | None) -> None:
        self._under_way = False
        self._end(None if error is None else f"reloaded, but for the vCPUs: {error}")

    def _end(self, trouble: str | None = None) -> None:
        if trouble is None:
            self._log.info("the configuration is reloaded")
        else:
            self._log.error(trouble)
        self._notifier.ready(trouble or self._status())


def _differences(old: Config, new: Config) -> list[str]:
    """What of the file is not as it was, as far as a running VM cannot follow."""
    parts = {
        "[kernel]": (old.kernel, new.kernel),
        "[firmware]": (old.firmware, new.firmware),
        "cpus.max": (old.cpus.max, new.cpus.max),
        "[memory]": (old.memory, new.memory),
        "[serial]": (old.serial, new.serial),
        "[console], [[port]], [rng], [balloon] or [virtio]": (_fixed(old.virtio), _fixed(new.virtio)),
    }
    return [name for name, (before, after) in parts.items() if _plain(before) != _plain(after)]


def _balloon_bytes(config: Config) -> int | None:
    return config.virtio.balloon_bytes if config.virtio is not None else None


def _fixed(virtio: VirtioConfig | None) -> object:
    """What of the devices cannot change; of the balloon, whether there is one."""
    if virtio is None:
        return None
    others = (name for name in type(virtio).__slots__ if name != "balloon_bytes")
    return [virtio.balloon_bytes is None, *(_plain(getattr(virtio, name)) for name in others)]


def _plain(section: object) -> object:
    """A section of the configuration as a value that can be compared."""
    if isinstance(section, tuple):
        return [_plain(one) for one in section]
    slots = getattr(type(section), "__slots__", None)
    return section if slots is None else [_plain(getattr(section, slot)) for slot in slots]
