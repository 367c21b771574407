"""One nested host for all tests of the lab that a process runs, with the package installed.

A host that dies under a test is not the test's fault: it is started once more, that test runs again, and the summary says so. A
guest that dies or falls silent is a failure, and its report has all that the host can tell of it; `excuses.py` has the rest.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.channel import HostDied
from lab.excuses import Excuses, faults
from lab.host import LabHost
from lab.prepare import guest_config, install, payload
from lab.root_tree import RELEASES
from support.unit_vm import UnitVm

_NUMBERS = itertools.count(1)
_EXCUSES = Excuses()
# An emulated host dies about twice an hour, and the longest test takes eight minutes.
_ATTEMPTS = 3
# The name of the property of a test that says why it ran again.
_EXCUSE = "excuse"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.lab)
            # The first one boots the host and may have to build it; a Debian that is used for a while takes ten minutes.
            item.add_marker(pytest.mark.timeout(1800))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="only root can boot the nested host"))
    # The longest first, so that of two processes none is left alone with it.
    items.sort(key=lambda item: item.path.name != "test_disks.py")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHost]:
    folder = tmp_path_factory.mktemp("lab")
    with (folder / "kept.raw").open("xb") as kept:
        kept.truncate(1 << 30)
    # Of one processor, for another process has a host, too: emulated processors that wait for each other take turns with those
    # that have work, and an emulator with one thread loses the registers of no guest (docs/design.md, "Tests").
    host = LabHost(folder / "host", folder / "kept.raw", cpus=1)
    try:
        host.start(payload())
        install(host)
        yield host
    finally:
        host.stop()


@pytest.fixture
def vm(request: pytest.FixtureRequest, lab: LabHost) -> Iterator[UnitVm]:
    """A VM of the Debian 13 guest, configured and not started, under a name of its own. It is gone afterwards."""
    vm = UnitVm(lab, f"vm{next(_NUMBERS)}")
    try:
        vm.configure(guest_config())
    except HostDied as death:
        _revive(request.node, lab, str(death))
        vm.configure(guest_config())
    yield vm
    with contextlib.suppress(HostDied):
        vm.remove()


@pytest.fixture
def guests(vm: UnitVm) -> Iterator[dict[str, UnitVm]]:
    """A VM for the guest of each release, to be configured and run side by side."""
    guests = {RELEASES[0]: vm} | {release: UnitVm(vm.host, f"{vm.name}-{release}") for release in RELEASES[1:]}
    yield guests
    with contextlib.suppress(HostDied):
        for other in list(guests.values())[1:]:
            other.remove()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """In place of the check of all other tests: under one of these, the host may be started anew."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test of the lab, and again, on a new host, if the host was to blame."""
    lab = pyfuncitem.funcargs.get("lab") or getattr(pyfuncitem.funcargs.get("vm"), "host", None)
    if not isinstance(lab, LabHost):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    for attempt in range(_ATTEMPTS):
        before = faults(lab)
        try:
            pyfuncitem.obj(**arguments)
            break
        except Exception as failure:
            excuse = _EXCUSES.excuse(failure, lab, before)
            if excuse is None or attempt + 1 == _ATTEMPTS:
                raise
            _revive(pyfuncitem, lab, excuse)
            if isinstance(vm := arguments.get("vm"), UnitVm):
                vm.configure(guest_config())
    return True


def _revive(item: pytest.Item, lab: LabHost, excuse: str) -> None:
    item.user_properties.append((_EXCUSE, f"{item.nodeid}: {excuse}\n{lab.last_words()}"))
    lab.stop()
    lab.start(payload())
    install(lab)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of all processes: each report of a test has its properties, and the last one all of them."""
    reports = [one for some in terminalreporter.stats.values() for one in some if getattr(one, "when", "") == "teardown"]
    said = [str(text) for report in reports for name, text in report.user_properties if name == _EXCUSE]
    if said:
        terminalreporter.section("the lab's host died, or spoiled a guest, and was started anew", yellow=True)
        for excuse in said:
            terminalreporter.line(excuse)
