"""`systemctl reload`: the configuration is read again, and what can change in a running VM changes. All of it, or nothing.

That is the number of vCPUs, if the file has another one than before, and the section [service]. The journal says what else is
different and waits for a restart.
"""

from __future__ import annotations

from vmservice.config import check_files, load_config
from vmservice.errors import ConfigError, VmmError
from vmservice.vm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config import Config, ServiceConfig
    from vmservice.service.journal import Log
    from vmservice.service.sd_notify import Notifier
    from vmservice.vm.lifecycle import Vm


class Reload:
    """Reloads for `vm`, which was built from `config`. `service` is the section [service] that holds now."""

    def __init__(self, vm: Vm, config: Config, log: Log, notifier: Notifier, status: Callable[[], str]) -> None:
        self.service: ServiceConfig = config.service
        self._vm = vm
        self._built_from = config
        self._boot_vcpus = config.cpus.boot
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
        waiting = _differences(self._built_from, new)
        if waiting:
            check_files(new)
        resizing = None
        if new.cpus.boot != self._boot_vcpus and self._vm.state in (State.RUNNING, State.PAUSED):
            resizing = self._vm.resize(new.cpus.boot)
        self._vm.reconfigure(boot_vcpus=new.cpus.boot, on_reset=new.service.on_reset)
        self._boot_vcpus, self.service = new.cpus.boot, new.service
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
        "[console], [rng], [balloon] or [virtio]": (old.virtio, new.virtio),
    }
    return [name for name, (before, after) in parts.items() if _plain(before) != _plain(after)]


def _plain(section: object) -> object:
    """A section of the configuration as a value that can be compared."""
    slots = getattr(type(section), "__slots__", None)
    return section if slots is None else [_plain(getattr(section, slot)) for slot in slots]
