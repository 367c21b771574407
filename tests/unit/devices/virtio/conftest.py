"""Guest memory for the tests of this room: closing it fails if a device has kept a part of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.guest_ram import MIB, guest_ram
from support.virtqueue import Driver

from vmservice.devices.virtio import balloon, queue, served, transport
from vmservice.memory.guest_memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

    from vmservice.devices.virtio.device import VirtioDevice


@pytest.fixture(autouse=True)
def slices_end_by_their_number_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is done at once would else depend on how busy the host is; `test_slices.py` is about time."""
    if not request.module.__name__.endswith("test_slices"):
        for module in (balloon, queue, served, transport):
            monkeypatch.setattr(module, "SLICE_SEC", 3600.0)


@pytest.fixture
def ram() -> Iterator[GuestMemory]:
    """8 MiB at 0, then a hole."""
    memory = guest_ram((0, 8 * MIB))
    yield memory
    memory.close()


@pytest.fixture
def make_driver(ram: GuestMemory) -> Iterator[MakeDriver]:
    """A driver of a device in `ram`."""
    drivers: list[Driver] = []

    def make(device: VirtioDevice) -> Driver:
        drivers.append(Driver(device, ram))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.transport.close()
