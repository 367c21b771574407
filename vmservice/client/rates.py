"""What a VM does each second: its exits, and the bytes of its disks and networks, of two looks at its counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmservice.client.overview import Overview
from vmservice.client.vms import DeviceFacts

# Each interface's own counters, of those that the kernel moves the frames of.
INTERFACES = "/sys/class/net"

# Which counters of `Stats` are added up: the kind of device, and the counter's own name. The guest's view, as those have it.
_OF_DEVICES = {
    "disk_read": ("disk.", ".read_bytes"),
    "disk_written": ("disk.", ".written_bytes"),
    "network_received": ("network.", ".received_bytes"),
    "network_sent": ("network.", ".sent_bytes"),
}


@dataclass(frozen=True)
class Rates:
    """By the second: VM exits, and bytes. None is not known, as in a first look, or where the host does not count it."""

    exits: float | None = None
    disk_read: float | None = None
    disk_written: float | None = None
    network_received: float | None = None
    network_sent: float | None = None


def totals(vm: Overview) -> dict[str, float]:
    """The sums of the VM's counters by the names of `Rates`; what there is no counter for is left out."""
    if vm.facts is None or vm.facts.stats is None:
        return {}
    stats = vm.facts.stats
    found = {"exits": stats["vcpu.exits"]} if "vcpu.exits" in stats else {}
    for name, (kind, counter) in _OF_DEVICES.items():
        values = [value for key, value in stats.items() if key.startswith(kind) and key.endswith(counter)]
        if values:
            found[name] = sum(values)
    for device in vm.facts.devices or ():
        if device.kind == "network" and device.details.get("vhost") is True:
            for name, value in _of_tap(device).items():
                found[name] = found.get(name, 0) + value
    return found


def rates(before: Mapping[str, float], after: Mapping[str, float], elapsed_sec: float) -> Rates:
    """Between two totals of one process. A counter that is smaller than before has begun anew, with its guest."""
    if elapsed_sec <= 0:
        return Rates()
    grown = {name: value - before[name] if value >= before[name] else value for name, value in after.items() if name in before}
    return Rates(**{name: value / elapsed_sec for name, value in grown.items()})


def _of_tap(device: DeviceFacts) -> dict[str, float]:
    """The host's counters of a tap, which receives what the guest sends. Those of any other kind of interface mean something
    else: only a tap has tun_flags."""
    tap = str(device.details.get("tap", ""))
    if not tap or "/" in tap or tap in (".", ".."):
        return {}
    folder = f"{INTERFACES}/{tap}"
    try:
        with open(f"{folder}/tun_flags", encoding="ascii"):
            pass
        return {
            "network_received": _number(f"{folder}/statistics/tx_bytes"),
            "network_sent": _number(f"{folder}/statistics/rx_bytes"),
        }
    except (OSError, ValueError):
        return {}


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
