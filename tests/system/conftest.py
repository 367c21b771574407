"""A container with the package installed, for all tests that leave it as it was, and a fresh one for those that do not.

Each is of Debian 13, and for a test that is marked `every_release` of Debian 12 too.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.root_tree import RELEASES
from support import payload
from support.cockpit_tree import cockpit_tree
from support.container import Container
from support.package import INSTALLED_FROM, debian_package
from support.unit_vm import UnitVm, firmware_config

# Guests of a few bytes at the reset vector, 16 bytes below the image's end.
BLOBS = {
    "deaf": bytes.fromhex("fa f4 eb fc"),  # cli; hlt; again: no button reaches it
    "panic": bytes.fromhex("ba 05 05 b0 01 ee f4 eb fd"),  # mov dx, 0x505; mov al, 1; out dx, al: pvpanic; hlt, again
    "reset": bytes.fromhex("b0 fe e6 64 f4"),  # mov al, 0xfe; out 0x64, al: the keyboard controller's reset line
    "off": bytes.fromhex("ba 00 06 b0 34 ee f4 eb fd"),  # mov dx, 0x600; mov al, 0x34; out dx, al: ACPI's S5; hlt, again
    "wedged": bytes.fromhex("fa eb fe"),  # cli; jump to itself: it never leaves the processor
    "flood": bytes.fromhex("ba f8 03 b0 79 ee b0 0a ee eb f8"),  # "y" and a newline to COM1, as fast as it goes
}

_NUMBERS = itertools.count(1)
_SUPPORT = Path(__file__).parents[1] / "support"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.system)
            # The first one may have to build the root tree.
            item.add_marker(pytest.mark.timeout(600))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="only root can boot a container"))
            elif not os.access("/dev/kvm", os.R_OK | os.W_OK):
                item.add_marker(pytest.mark.skip(reason="no usable /dev/kvm on this machine"))


@pytest.fixture(scope="session", params=RELEASES[:1])
def release(request: pytest.FixtureRequest) -> str:
    """Debian's name of what the containers run. pytest runs the tests of one after those of the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def container(tmp_path_factory: pytest.TempPathFactory, release: str) -> Iterator[Container]:
    """A host with the package installed."""
    yield from _boot(tmp_path_factory.mktemp("payloads"), release, install=True)


@pytest.fixture(scope="session")
def faulty_container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A host with the package installed, for tests that break one of its services and repair it again."""
    yield from _boot(tmp_path_factory.mktemp("payloads"), RELEASES[0], install=True)


@pytest.fixture
def own_container(tmp_path: Path, release: str) -> Iterator[Container]:
    """A host of the test's own, with the package installed."""
    yield from _boot(tmp_path, release, install=True)


@pytest.fixture
def bare_container(tmp_path: Path, release: str) -> Iterator[Container]:
    """A host of the test's own, without the package."""
    yield from _boot(tmp_path, release, install=False)


@pytest.fixture
def broker_container(tmp_path: Path, release: str) -> Iterator[Container]:
    """A host of the test's own that runs dbus-broker, with the package installed."""
    yield from _boot(tmp_path, release, install=True, bus="dbus-broker.service")


@pytest.fixture(scope="session")
def cockpit_container(tmp_path_factory: pytest.TempPathFactory, release: str) -> Iterator[Container]:
    """A host that has Cockpit and a browser, with the package installed."""
    yield from _boot(tmp_path_factory.mktemp("payloads"), release, install=True, tree=cockpit_tree(release))


@pytest.fixture
def vm(container: Container) -> Iterator[UnitVm]:
    """A VM of the heartbeat payload, configured and not started, under a name of its own. It is gone afterwards."""
    vm = UnitVm(container, f"vm{next(_NUMBERS)}")
    vm.configure(firmware_config())
    yield vm
    vm.remove()


def _boot(
    scratch: Path, release: str, *, install: bool, bus: str = "dbus.service", tree: Path | None = None
) -> Iterator[Container]:
    container = Container(release, bus, tree)
    try:
        container.start()
        shutil.copy(debian_package(), container.shared / "vmservice.deb")
        for script in ("journal_wait.py", "bus_flood.py", "wedged.py", "slow_memory.py"):
            shutil.copy(_SUPPORT / script, container.shared)
        for variant in ("beat", "busy", "idle"):
            shutil.copy(payload.build(variant, scratch), container.shared / f"{variant}.bin")
        for name, code in BLOBS.items():
            (container.shared / f"{name}.bin").write_bytes(bytes(0xFFF0) + code.ljust(16, b"\0"))
        if install:
            container.run(f"apt-get install -y -qq {INSTALLED_FROM}", check=True)
        yield container
    finally:
        container.stop()
