"""The plug of `[vsock]`: what becomes of a guest's sockets when the machine is paused, saved and built anew."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from support.boards import make_board, make_services
from support.guest_ram import guest_ram
from support.vhost_double import SET_CID, VhostKernel

from vmservice.board.mmio_slots import MmioSlots
from vmservice.board.pci_slots import PciSlots
from vmservice.board.timers import Timers
from vmservice.config.sections.vsock import VsockDevice
from vmservice.errors import HostError
from vmservice.host import vhost, vsock_device
from vmservice.host.vsock_device import VsockEnd
from vmservice.plug import vsock
from vmservice.plug.vsock import VsockPlug


class Place:
    """A machine with a slot; `warnings` would be in the journal."""

    def __init__(self, transport: str, tree: dict[str, object] | None = None) -> None:
        self.memory, self.timers = guest_ram(), Timers()
        self.posted: list[Callable[[], None]] = []
        self.warnings: list[str] = []
        board = make_board(self.memory, timers=self.timers)
        services = make_services(board, self.memory, self.timers, post=self.posted.append, warn=self.warnings.append)
        self.slots = (
            PciSlots(board, services, None, irqfd=False, ioeventfd=False)  # type: ignore[arg-type]
            if transport == "pci"
            else MmioSlots(board, services)
        )
        self.slot = self.slots.slot("vsock", tree)

    def close(self) -> None:
        self.slots.close()
        self.memory.close()
        self.timers.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[VhostKernel]:
    kernel = VhostKernel()
    monkeypatch.setattr(vhost, "ioctl", kernel.ioctl)
    monkeypatch.setattr(vsock_device, "open_device", lambda kind, wanted_by: kernel.open(kind))
    yield kernel
    kernel.close()


@pytest.fixture
def end(kernel: VhostKernel) -> Iterator[VsockEnd]:
    host = SimpleNamespace(vm_name="web")
    end = vsock.open(VsockDevice(), host)  # type: ignore[arg-type]
    yield end
    end.close()


def build(end: VsockEnd, place: Place) -> VsockPlug:
    plugged = vsock.build(VsockDevice(), end, place.slot)
    assert isinstance(plugged, VsockPlug)
    return plugged


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_guest_finds_its_number(end: VsockEnd, transport: str) -> None:
    place = Place(transport)
    plugged = build(end, place)
    plugged.start()
    assert plugged.device.read_config(0, 8) == end.cid.to_bytes(8, "little")
    assert plugged.transport.virtio.offered_features == 1 << 32 | 1 << 29 | 1 << 28 | 1 << 1
    assert vsock.details(VsockDevice(), end) == {"vsock": {"cid": end.cid}}
    plugged.pause()
    plugged.resume()
    plugged.close()
    place.close()


def test_whoever_is_connected_to_a_guest_that_is_gone_is_told(end: VsockEnd, kernel: VhostKernel) -> None:
    """The kernel resets connections when the descriptor is closed, and the next guest has the number all the same."""
    cid = end.cid
    for _ in range(2):
        place, before = Place("mmio"), kernel.devices[-1]
        plugged = build(end, place)
        plugged.start()
        plugged.close()
        assert not before.is_open
        assert kernel.devices[-1].cid == end.cid == cid
        assert place.warnings == []
        place.close()


def test_a_number_that_is_taken_between_two_guests(end: VsockEnd, kernel: VhostKernel) -> None:
    place = Place("mmio")
    plugged = build(end, place)
    plugged.start()
    kernel.refuse[SET_CID] = errno.EBUSY
    plugged.close()
    assert place.warnings == [
        "vsock: VHOST_VSOCK_SET_GUEST_CID for the sockets of web failed: Device or resource busy (errno 16)"
    ]
    place.close()
    kernel.refuse[SET_CID] = errno.EBUSY
    place = Place("mmio")
    with pytest.raises(HostError, match="VHOST_VSOCK_SET_GUEST_CID"):
        build(end, place)
    build(end, place).close()
    place.close()


def test_a_guest_that_goes_on_elsewhere_is_told_that_its_connections_are_gone(end: VsockEnd) -> None:
    place = Place("pci")
    plugged = build(end, place)
    plugged.start()
    plugged.pause()
    tree = plugged.collect()
    assert tree["device"] == {"cid": end.cid, "is_reset_due": False}
    plugged.close()
    place.close()
    tree["device"]["cid"] = 77
    place = Place("pci", {"device": tree["device"]})
    plugged = build(end, place)
    assert plugged.device.state.values() == {"cid": end.cid, "is_reset_due": True}
    plugged.close()
    place.close()
