"""`[[network]]` with mode = "tap": virtio-net at a tap of the host."""

from __future__ import annotations

import _thread
import errno
import os

from vmservice.board.net_rings import NetRings
from vmservice.board.net_server import Counters, Pair
from vmservice.board.slot import Plugged
from vmservice.devices.limited_warnings import LimitedWarnings
from vmservice.devices.virtio import net
from vmservice.devices.virtio.net import Net, NetState
from vmservice.errors import ConfigError, HostError
from vmservice.host import tap as host_tap
from vmservice.host.interfaces import look_at
from vmservice.host.tap import Tap, TapGone, open_vhosts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmservice.board.slot import Slot
    from vmservice.board.vhost_rings import VhostRings
    from vmservice.config.sections.network import NetworkDevice
    from vmservice.devices.timer import Timer
    from vmservice.plug.backend import Details, Host

_TUN_BITS = (
    (net.GUEST_CSUM, host_tap.TUN_F_CSUM),
    (net.GUEST_TSO4, host_tap.TUN_F_TSO4),
    (net.GUEST_TSO6, host_tap.TUN_F_TSO6),
    (net.GUEST_ECN, host_tap.TUN_F_TSO_ECN),
)

# What vm-tap@ is told.
ENVIRONMENT_ACCOUNT = "VMSERVICE_ACCOUNT"
ENVIRONMENT_TAP = "VMSERVICE_TAP"

# A tap that is gone is looked for after 1 second, 2, 4 and so on.
FIRST_LOOK_SEC = 1.0
LONGEST_LOOK_SEC = 30.0


class NetworkPlug(Plugged):
    """`tap` outlives it: the next machine has the same."""

    def __init__(self, section: NetworkDevice, tap: Tap, slot: Slot) -> None:
        self._tap = tap
        self._slot = slot
        self._warn = LimitedWarnings(slot.warn)
        self._warning = _thread.allocate_lock()
        self._wants_link = section.link == "up"
        self._is_gone = not tap.is_attached()
        self._look_sec = FIRST_LOOK_SEC
        self._timer: Timer | None = None
        state = slot.state_of(NetState)
        self._is_restored = state is not None
        if state is None:
            state = NetState(section.mac, section.mtu or tap.mtu, offloads=section.offload, is_up=self._link)
        self.device = Net(section.mac, section.queues, state, self._apply)
        self._pairs: list[Pair] = []
        self._rings = self._make_rings(slot)
        try:
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    def _make_rings(self, slot: Slot) -> NetRings | VhostRings:
        device, tap = self.device, self._tap
        if tap.vhosts:
            from vmservice.board.vhost_rings import VhostRings

            return VhostRings(
                slot.label,
                len(device.queue_max_sizes),
                tap.vhosts,
                slot.memory,
                serve=device.serve,
                in_use=device.pairs_in_use,
                bug=slot.bug,
            )
        self._pairs += [Pair(fd, self._on_refused) for fd in tap.queue_fds]
        return NetRings(
            slot.label,
            self._pairs,
            serve=device.serve,
            in_use=device.pairs_in_use,
            host_gone=lambda: slot.post(self._on_gone),
            bug=slot.bug,
        )

    @property
    def _link(self) -> bool:
        return self._wants_link and not self._is_gone

    def start(self) -> None:
        self._set_carrier()
        self._rings.begin()
        self._rings.hold(not self._link)
        super().start()
        with self.lock:
            self._look_again()
            self._follow_link()
            if self._is_restored:
                self.device.announce()

    def stats(self) -> dict[str, float]:
        """Nothing of what the kernel moves: the host's own counters of the tap have it."""
        if not self._pairs:
            return {}
        counters = [pair.counters for pair in self._pairs]
        return {name: sum(getattr(one, name) for one in counters) for name in Counters.__slots__}

    def reconfigure(self, section: NetworkDevice) -> None:
        """A reload: link and offloads may be others, and the tap may be there again."""
        self._wants_link = section.link == "up"
        with self.lock:
            # A driver knows what it was offered: it has the rest when it is loaded anew, and takes at once what it may.
            self.device.state.offloads = section.offload
            self._look_again()
            self._follow_link()
        self._set_carrier()

    def close(self) -> None:
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        self._rings.close()

    # Link

    def _follow_link(self) -> None:
        self.device.set_link(self._link)
        self._rings.hold(not self._link)

    def _set_carrier(self) -> None:
        if not self._is_gone:
            self._try(self._tap.set_carrier, self._wants_link)

    # The tap

    def _apply(self, offloads: int, pairs: int) -> None:
        """From any thread: what the driver takes, and how many pairs it uses."""
        tun = sum(bit for wanted, bit in _TUN_BITS if offloads & wanted)
        self._try(self._tap.set_offload, tun)
        self._try(self._tap.set_pairs, pairs)

    def _try(self, change: Callable[[Any], None], value: int) -> None:
        try:
            change(value)
        except TapGone:
            return  # whoever moves frames finds out too
        except HostError as error:
            self._say(str(error))

    def _on_refused(self, number: int) -> None:
        """From a pair's thread. Frames that make no sense are the guest's affair."""
        if number == errno.EIO:
            name = self._tap.name
            self._say(f"{self._tap.what}: the tap {name} is down, and takes no frames; `ip link set {name} up` changes that")

    def _say(self, text: str) -> None:
        with self._warning:
            self._warn(text)

    def _on_gone(self) -> None:
        """With the lock held: a pair's thread cannot read from the tap."""
        if self._tap.is_attached():
            self._later(self._follow_link)
        else:
            self._look_again()

    def _look_again(self) -> None:
        """With the lock held: whether the tap is there, and if it is not, whether it has been made anew."""
        if self._tap.is_attached():
            return
        try:
            self._tap.attach()
        except (ConfigError, HostError) as error:
            self._has_no_tap(error)
            return
        self._slot.warn(f"{self._tap.what}: the tap {self._tap.name} is there again")
        self._is_gone, self._look_sec = False, FIRST_LOOK_SEC
        self._rings.hold(True)  # the kernel is given the tap anew
        self._follow_link()
        self.device.announce()

    def _has_no_tap(self, error: ConfigError | HostError) -> None:
        if not self._is_gone:
            why = "has been deleted" if isinstance(error, TapGone) else f"cannot be used any more: {error}"
            self._slot.warn(
                f"{self._tap.what}: the tap {self._tap.name} {why}; the guest's link is down until it is there again"
            )
            self._is_gone = True
            self._follow_link()
        self._later(self._look_again)

    def _later(self, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._slot.call_later(self._look_sec, callback)
        self._look_sec = min(2 * self._look_sec, LONGEST_LOOK_SEC)


def open(section: NetworkDevice, host: Host) -> Tap:
    what = f"network {section.name}"
    passed, vhosts, facts = (host.take_passed(f"{kind}/{section.name}") for kind in ("tun", "vhost-net", "tap"))
    advice = f"the journal of vm-tap@{host.vm_name}:{section.name}.service may say why" if section.makes_tap else ""
    try:
        tap = Tap(section.tap, what, section.queues, passed, _read_mtu(facts), advice)
    except BaseException:
        _close(vhosts)
        raise
    finally:
        _close(facts)
    if not passed:
        vhosts = open_vhosts(section.queues)
    try:
        if len(vhosts) == section.queues:
            tap.take_vhosts(vhosts)
        else:
            _close(vhosts)
        if section.mtu > tap.mtu > 0:
            raise ConfigError(f"{what}: mtu is {section.mtu}, and the tap {tap.name} has {tap.mtu}; expected at most that")
    except BaseException:
        tap.close()
        raise
    return tap


def _read_mtu(facts: list[int]) -> int:
    return int(os.pread(facts[0], 20, 0)) if facts else 0


def made_by(section: NetworkDevice, account: str) -> tuple[str, list[str]] | None:
    """The kind of unit that makes the tap, vm-KIND@.service, and what it is told; None where the tap is there before."""
    if not section.makes_tap:
        return None
    return "tap", [f"Environment={ENVIRONMENT_ACCOUNT}={account} {ENVIRONMENT_TAP}={section.tap}"]


def passed(section: NetworkDevice) -> dict[str, list[int]]:
    """By root in the host's network namespace, for `open` in the VM's: descriptors by name, to be closed when they are passed.

    "tap/NAME" holds the MTU of the tap, 0 where there is none.
    """
    found = look_at(section.tap)
    facts = os.memfd_create("tap")
    os.write(facts, str(found.mtu if found is not None else 0).encode())
    tuns = [host_tap.open_device(f"network {section.name}") for _ in range(section.queues)]
    return {
        f"tun/{section.name}": tuns,
        f"vhost-net/{section.name}": open_vhosts(section.queues),
        f"tap/{section.name}": [facts],
    }


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def build(section: NetworkDevice, backend: Tap, slot: Slot) -> Plugged:
    return NetworkPlug(section, backend, slot)


def details(section: NetworkDevice, backend: Tap) -> dict[str, Details]:
    found: Details = {
        "mode": "tap",
        "tap": section.tap,
        "mac": section.mac.hex(":"),
        "mtu": section.mtu or backend.mtu,
        "queues": section.queues,
        "link": section.link,
        "offload": section.offload,
        "vhost": bool(backend.vhosts),
    }
    if section.bridge:
        found["bridge"] = section.bridge
    return {section.name: found}
