"""`[[network]]` with mode = "passt": virtio-net that passt serves, in a unit of its own. It needs no privilege of the host.

passt does without a configuration space: what the driver reads there is ours. It fills each frame in, and leaves checksums out
that are right by construction, which a driver takes from it where it has said so (GUEST_CSUM). What it is sent has to be whole.
"""

from __future__ import annotations

import struct

from vmservice.board.vhost_user_net_rings import VhostUserNetRings
from vmservice.config.forward import UNPRIVILEGED_PORTS, parse_forward
from vmservice.devices.virtio.ids import TYPE_NET
from vmservice.devices.virtio.net import GUEST_CSUM, LINK_UP, MAC, MRG_RXBUF, MTU, STATUS
from vmservice.host.passt import find_passt
from vmservice.host.vhost_user_link import BackEndLink
from vmservice.plug.external import ExternalBackend, ExternalPlug, socket_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Plugged, Slot
    from vmservice.config.sections.network import NetworkDevice
    from vmservice.plug.backend import Backend, Details, Host
    from vmservice.plug.passt_stream import StreamBackend

# One pair of virtqueues is all that passt has, and 1,024 entries the longest that it takes.
QUEUES = 2
QUEUE_SIZE = 1024

_OURS = GUEST_CSUM | MTU | MAC | STATUS

# struct virtio_net_config (virtio 1.2 §5.1.4): MAC address, status, pairs of virtqueues, MTU
_CONFIG = struct.Struct("<6sHHH")
_STATUS = struct.Struct("<H")
_STATUS_OFFSET = 6


class PasstPlug(ExternalPlug):
    """The driver's link is up while there is a passt that has its virtqueues, unless the configuration says "down"."""

    def __init__(self, section: NetworkDevice, backend: ExternalBackend, slot: Slot) -> None:
        link = backend.link
        self._wants_link = section.link == "up"
        self._is_served = True
        config = net_config(section.mac, section.mtu, is_up=self._wants_link)
        super().__init__(
            slot,
            link,
            TYPE_NET,
            link.features & MRG_RXBUF | _OURS,
            is_volatile=False,
            adapt=lambda nothing: config,
            queue_size=QUEUE_SIZE,
        )

    def make_rings(self, slot: Slot, link: BackEndLink, queues: int) -> VhostUserNetRings:
        self._net_rings = rings = VhostUserNetRings(
            slot.label,
            queues,
            link,
            slot.memory,
            on_link=lambda is_served: slot.post(lambda: self._set_served(is_served)),
            warn=slot.warn,
            bug=slot.bug,
        )
        rings.hold(not self._wants_link)
        return rings

    def reconfigure(self, section: NetworkDevice) -> None:
        """A reload: the link may be another, and a passt that could not be started may be startable now."""
        self._wants_link = section.link == "up"
        self._net_rings.hold(not self._wants_link)
        self._net_rings.look_again()
        with self.lock:
            self._follow_link()

    def _set_served(self, is_served: bool) -> None:
        self._is_served = is_served
        self._follow_link()

    def _follow_link(self) -> None:
        config, behind = self.device.state.config, _STATUS_OFFSET + _STATUS.size
        status = _STATUS.pack(LINK_UP if self._wants_link and self._is_served else 0)
        self.device.set_config(config[:_STATUS_OFFSET] + status + config[behind:])


def net_config(mac: bytes, mtu: int, *, is_up: bool) -> bytes:
    """The device's configuration space."""
    return _CONFIG.pack(mac, LINK_UP if is_up else 0, QUEUES // 2, mtu)


def open(section: NetworkDevice, host: Host) -> Backend:
    path = socket_path("passt", host.vm_name, section.name)
    name = f"the passt of the network {section.name}"
    advice = f"the journal of vm-passt@{host.vm_name}:{section.name}.service may say why"
    if not is_by_vhost_user(section):
        from vmservice.plug.passt_stream import StreamBackend

        stream = StreamBackend(path, name, advice, section.mac)
        stream.open()
        return stream
    link = BackEndLink(path, name, 0, advice, known_queues=QUEUES)
    link.open()
    return ExternalBackend(link)


def is_by_vhost_user(section: NetworkDevice) -> bool:
    """How passt serves the network: by vhost-user where it can, else at a stream. HostFacilityMissing where there is no passt.

    By vhost-user, a datagram for a forwarded port that comes while the virtqueue has no room for it, as in a pause, has passt
    of 2025 go round in a loop (`udp_sock_fwd`), in which it hears of nothing any more.
    """
    return find_passt(section.name) and not any(entry.endswith("/udp") for entry in section.forward)


def build(section: NetworkDevice, backend: ExternalBackend | StreamBackend, slot: Slot) -> Plugged:
    if isinstance(backend, ExternalBackend):
        return PasstPlug(section, backend, slot)
    from vmservice.plug.passt_stream import StreamPlug

    return StreamPlug(section, backend, slot)


def details(section: NetworkDevice, backend: ExternalBackend | StreamBackend) -> dict[str, Details]:
    mac = section.mac.hex(":")
    return {
        section.name: {
            "mode": "passt",
            "mac": mac,
            "mtu": section.mtu,
            "link": section.link,
            "forward": ", ".join(section.forward),
            "socket": backend.link.path if isinstance(backend, ExternalBackend) else backend.path,
            "vhost_user": isinstance(backend, ExternalBackend),
        }
    }


def unit_needs(section: NetworkDevice, vm_name: str) -> tuple[str, list[str]]:
    """The kind of unit that serves the network, vm-KIND@.service, and what its sandbox has to let through: the capability to
    listen at low ports, where the configuration asks for one."""
    if any(parse_forward(entry).host < UNPRIVILEGED_PORTS for entry in section.forward):
        return "passt", ["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]
    return "passt", []
