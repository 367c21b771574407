"""`systemctl reload`: the configuration is read again, and what can change in a running VM changes. All of it, or nothing.

That is the number of vCPUs and the keys of devices that their sections call LIVE, where the file has other values than before,
and the section [service]; and devices look again at what of the host they follow, such as the size of an image. The journal
says what else is different and waits for a restart.
"""

from __future__ import annotations

import traceback

from vmservice.config.load import check_files, load_config, section_header, section_module
from vmservice.errors import ConfigError, VmmError
from vmservice.vm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config.core import ServiceConfig
    from vmservice.config.load import Config, Device
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
        self._devices = {device.name: device for device in config.devices}  # as they are now
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
        try:
            new, changed, waiting = self._read()
        except VmmError:
            raise
        except Exception as error:  # our bug; but what is in a file is no reason to end a VM that runs
            self._log.error(f"internal error: {''.join(traceback.format_exception(error))}")
            raise VmmError("internal error; the journal has the details") from error
        resizing = None
        if new.cpus.boot != self._boot_vcpus and self._vm.state in (State.RUNNING, State.PAUSED):
            resizing = self._vm.resize(new.cpus.boot)
        self._vm.reconfigure(
            boot_vcpus=new.cpus.boot,
            on_reset=new.service.on_reset,
            on_panic=new.service.on_panic,
            on_watchdog=new.service.on_watchdog,
        )
        for device in changed:
            self._vm.reconfigure_device(device)
            self._devices[device.name] = device
        for device in self._devices.values():
            if device not in changed and getattr(section_module(device.kind), "FOLLOWS_HOST", False):
                self._vm.reconfigure_device(device)
        self._boot_vcpus, self.service = new.cpus.boot, new.service
        self._log.limit(new.service.log_level)
        if waiting:
            self._log.info(f"different in {new.path}, and in force when the VM is restarted: {', '.join(waiting)}")
        if resizing is not None:
            self._under_way = True
            resizing.on_end = self._on_resized
        return resizing is None

    def _read(self) -> tuple[Config, list[Device], list[str]]:
        """What the files say now, checked as far as need be; the devices that change; what waits for a restart."""
        new = load_config(self._built_from.name, self._built_from.path)
        if new.cpus.boot > self._vm.max_vcpus:
            raise ConfigError(
                f"{new.path}: cpus.boot is {new.cpus.boot}, and this VM can have {self._vm.max_vcpus} until it is restarted"
            )
        changed = [device for device in new.devices if self._is_changed(device)]
        for device in changed:
            module = section_module(device.kind)
            if hasattr(module, "check_live"):
                with new.naming():
                    module.check_live(device, self._vm.memory_bytes)
        waiting = _differences(self._built_from, new)
        if waiting:
            check_files(new)
        return new, changed, waiting

    def _is_changed(self, new: Device) -> bool:
        """Whether a device that is there has another value of a key that may change now."""
        old = self._devices.get(new.name)
        return old is not None and old.kind == new.kind and _values(old, _live(old)) != _values(new, _live(new))

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
        "virtio.transport": (old.transport, new.transport),
        "[smbios]": (old.smbios, new.smbios),
        "[credentials]": (old.credentials, new.credentials),
        "service.ready": (old.service.ready_by_guest, new.service.ready_by_guest),
        "service.ready_timeout": (old.service.ready_timeout_sec, new.service.ready_timeout_sec),
    }
    different = [name for name, (before, after) in parts.items() if _plain(before) != _plain(after)]
    names = dict.fromkeys([*(device.name for device in old.devices), *(device.name for device in new.devices)])
    before, after = ({device.name: _fixed(device) for device in config.devices} for config in (old, new))
    kinds = {device.name: device.kind for device in (*old.devices, *new.devices)}
    changed = (kinds[name] for name in names if before.get(name) != after.get(name))
    return different + [section_header(kind) for kind in dict.fromkeys(changed)]


def _live(device: Device) -> set[str]:
    return set(section_module(device.kind).LIVE)


def _fixed(device: Device) -> object:
    """What of the device cannot change while the VM runs."""
    slots: tuple[str, ...] = getattr(type(device), "__slots__", ())
    return device.kind, _values(device, set(slots) - _live(device))


def _values(device: Device, names: set[str]) -> object:
    return {name: _plain(getattr(device, name)) for name in sorted(names)}


def _plain(section: object) -> object:
    """A section of the configuration as a value that can be compared."""
    if isinstance(section, tuple):
        return [_plain(one) for one in section]
    slots = getattr(type(section), "__slots__", None)
    return section if slots is None else [_plain(getattr(section, slot)) for slot in slots]
