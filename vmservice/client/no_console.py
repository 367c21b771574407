"""Why a VM has no console to attach to, and what to do about it: asked of the bus when the attempt has failed."""

from __future__ import annotations

from vmservice.client import interrupts
from vmservice.client.bus import connected_bus
from vmservice.client.console import LABELS
from vmservice.client.vms import Facts, NoSuchVm, NotRunning, facts, is_configured, with_near_name
from vmservice.config.core import LOGGED_MODES
from vmservice.config.names import config_path
from vmservice.errors import HostFacilityMissing, VmmError, quoted

_SECTIONS = {"serial": "serial", "hvc": "console"}
# What else is to be set, that nothing of what goes to the journal or file now is lost.
_LOGS: dict[object, str] = {"journal": 'log to "journal"', "file": 'log to "file", with its path in log_path'}


def why(name: str, label: str | None, *, user: bool) -> HostFacilityMissing | None:
    """The sentence, as an error; None where the bus cannot be asked. `label` is the console that was wanted, if one was."""

    async def ask() -> Facts:
        async with connected_bus(user=user) as bus:
            try:
                return await facts(bus, name)
            except NotRunning as error:
                raise await with_near_name(bus, error) from None

    try:
        vm = interrupts.run(ask())
    except NoSuchVm as error:
        return HostFacilityMissing(f"{error}{_of_the_other_instance(name, user=user)}")
    except NotRunning as error:
        return error
    except VmmError:
        return None
    return HostFacilityMissing(_of_a_running_vm(vm, label, config_path(name, user=user)))


def _of_the_other_instance(name: str, *, user: bool) -> str:
    """A clause, where the user has a VM of that name and the system none, or the other way round; else nothing."""
    other = not user
    if not is_configured(name, user=other):
        return ""
    return f"; for that of {config_path(name, user=other)} run the command {'with' if other else 'without'} --user"


def _of_a_running_vm(vm: Facts, label: str | None, path: str) -> str:
    """A sentence. The mode of what can be attached to is the last that is looked at: it is not where it is looked for."""
    consoles = {device.name: device.details for device in vm.devices or () if device.kind in ("console", "port")}
    wanted = label or next((one for one in LABELS if one in consoles), None)
    if wanted is None:
        return f"{vm.name} has no console: [serial] and [console] are off in {path}"
    if wanted not in consoles:
        section = f"[{_SECTIONS[wanted]}]" if wanted in _SECTIONS else f"a [[port]] called {quoted(wanted)}"
        others = ", ".join(consoles) or "none"
        return f"{vm.name} has no console {wanted}: {section} is not there, or off, in {path}; it has {others}"
    mode = consoles[wanted].get("mode")
    if mode in LOGGED_MODES:
        return f"{vm.name} was not started by its unit: its {wanted} console is at {consoles[wanted].get('path')}"
    prefix, place = (f"{_SECTIONS[wanted]}.", "") if wanted in _SECTIONS else ("", f", [[port]] {quoted(wanted)},")
    advice = f'set {prefix}mode to "socket"'
    if mode in _LOGS and consoles[wanted].get("console", True):
        advice += f" and {prefix}{_LOGS[mode]}, which keeps what is printed there"
    wrong = f"the {wanted} console of {vm.name} cannot be attached to in mode {quoted(str(mode))}"
    return f"{wrong}: in {path}{place} {advice}; then restart the VM"
