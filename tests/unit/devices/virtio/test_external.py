"""A device that another process is, as its driver sees it."""

from __future__ import annotations

import pytest
from support.virtqueue import offered

from vmservice.devices.virtio.external import External, ExternalState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.virtqueue import MakeDriver

FEATURES = 1 << 2 | 1 << 9


def device() -> External:
    return External(2, ExternalState(FEATURES, [128, 64], b"\x40" + bytes(7) + b"more"))


def test_features_queues_and_configuration_are_the_back_ends(make_driver: MakeDriver) -> None:
    driver = make_driver(device())
    assert offered(driver.transport) & 0xFFFF == FEATURES
    assert driver.device.queue_max_sizes == (128, 64)
    assert driver.transport.read_config(8, 8) == b"more\0\0\0\0"


def test_a_driver_changes_nothing_in_the_configuration(make_driver: MakeDriver) -> None:
    driver = make_driver(device())
    driver.transport.write_config(0, b"\xff")
    assert driver.transport.read_config(0, 1) == b"\x40"


@pytest.mark.parametrize(("config", "interrupts"), [(b"\x80" + bytes(7) + b"more", 1), (b"\x40" + bytes(7) + b"more", 0)])
def test_the_driver_is_told_of_a_change_once(make_driver: MakeDriver, config: bytes, interrupts: int) -> None:
    external = device()
    driver = make_driver(external)
    driver.start()
    generation = driver.transport.config_generation()
    for _ in range(2):
        external.set_config(config)
    assert driver.interrupt.configs == interrupts
    assert driver.transport.config_generation() == (generation + interrupts) & 0xFF


def test_before_there_is_a_driver_nobody_is_told(make_driver: MakeDriver) -> None:
    external = device()
    driver = make_driver(external)
    external.set_config(b"\x80")
    assert driver.interrupt.configs == 0
    assert driver.transport.read_config(0, 1) == b"\x80"


def test_it_goes_on_from_its_state() -> None:
    first = device()
    first.set_config(b"\x80")
    second = External(2, ExternalState.from_values(first.state.values()))
    assert (second.state, second.features, second.queue_max_sizes) == (first.state, FEATURES, (128, 64))
