"""What guests on the real /dev/kvm have as memory, and what becomes of them when the host takes it away."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.kvm_guest import Guest, needs_kvm, running_guest, wait_until
from support.payload import BANNER
from support.skips import KSM

from vmservice.config.core import MemoryConfig
from vmservice.errors import ConfigError, HostError
from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit, State

pytestmark = [pytest.mark.kvm, needs_kvm]

Payloads = Callable[[str], Path]

MIB = 1 << 20


def test_memory_behind_the_hole_is_there(payloads: Payloads) -> None:
    """5 GiB: 3 below the hole, 2 from 4 GiB on; nothing is touched, so nothing is used."""
    with running_guest(payloads("echo"), memory=MemoryConfig(5 << 30)) as guest:
        guest.output.wait_for(BANNER)
        assert [(region.gpa, region.size_bytes) for region in guest.memory.regions] == [(0, 3 << 30), (4 << 30, 2 << 30)]


def test_memory_that_the_processors_do_not_reach_is_refused(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one virtio device too."""
    monkeypatch.setattr("vmservice.vm.builder.physical_address_bits", lambda _: 32)
    with (
        pytest.raises(
            ConfigError,
            match=r"^/nowhere/test.toml: guest memory would end at 0x140000000, but this host's processors have 32 address",
        ),
        running_guest(payloads("echo"), memory=MemoryConfig(4 << 30)),
    ):
        pytest.fail("it runs")


@pytest.mark.parametrize("prefault", [False, True])
def test_a_guest_in_a_file_whose_memory_starts_clean_each_time(payloads: Payloads, tmp_path: Path, prefault: bool) -> None:
    file = tmp_path / "memory"
    file.touch()
    with running_guest(payloads("echo"), memory=MemoryConfig(16 * MIB, file=str(file), prefault=prefault)) as guest:
        seen = guest.output.wait_for(BANNER)
        guest.memory.write(8 * MIB, b"a secret of the first guest")
        assert file.read_bytes()[8 * MIB : 8 * MIB + 8] == b"a secret"
        guest.vm.reboot()
        guest.output.wait_for(BANNER, seen)
        assert guest.memory.read(8 * MIB, 4096) == bytes(4096)


def test_a_file_that_vanishes_is_missed_at_the_next_boot_only(payloads: Payloads, tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.touch()
    with running_guest(payloads("beat"), memory=MemoryConfig(16 * MIB, file=str(file))) as guest:
        seen = guest.output.wait_for(b"beat 1\n")
        file.unlink()
        guest.output.wait_for(b"beat ", seen)
        guest.vm.shutdown()
        with pytest.raises(HostError, match=r"^cannot open .*/memory, which memory.file names: No such file or directory"):
            guest.vm.boot()
        assert guest.vm.state == State.SHUTDOWN


def test_a_file_that_is_cut_short_ends_its_guest_with_a_sentence(payloads: Payloads, tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.touch()
    with running_guest(payloads("busy"), memory=MemoryConfig(16 * MIB, file=str(file))) as guest:
        guest.output.wait_for(b"beat 1\n")
        os.truncate(file, 0)
        event = guest.next_event()
        # What KVM says of it depends on whether it meets the hole itself or lets the guest's instruction fail.
        assert event.kind == EventKind.ERROR
        assert re.fullmatch(
            r"((KVM_RUN failed for )?vCPU 0: .+|the guest's memory has lost pages);"
            r" somebody has cut short the file that memory.file names",
            event.detail,
        )
        guest.vm.on_guest_event(event)
        assert (guest.vm.state, guest.vm.last_exit) == (State.SHUTDOWN, LastExit.ERROR)


def test_a_file_that_is_cut_short_is_noticed_before_anybody_touches_it(payloads: Payloads, tmp_path: Path) -> None:
    """An access of the VMM itself to what is gone is a SIGBUS."""
    file = tmp_path / "memory"
    file.touch()
    with running_guest(payloads("idle"), memory=MemoryConfig(16 * MIB, file=str(file))) as guest:
        guest.output.wait_for(BANNER)
        os.truncate(file, 15 * MIB)
        event = guest.next_event()
        assert event.kind == EventKind.ERROR
        assert event.detail == "the guest's memory has lost pages; somebody has cut short the file that memory.file names"
        guest.vm.on_guest_event(event)
        assert (guest.vm.state, guest.vm.last_exit) == (State.SHUTDOWN, LastExit.ERROR)


def test_shared_memory_runs_a_guest_and_starts_clean(payloads: Payloads) -> None:
    with running_guest(payloads("beat"), memory=MemoryConfig(16 * MIB, shared=True)) as guest:
        seen = guest.output.wait_for(b"beat 1\n")
        assert os.readlink(f"/proc/self/fd/{guest.memory.fd}") == "/memfd:vmservice-guest (deleted)"
        guest.memory.write(8 * MIB, b"a secret of the first guest")
        guest.vm.reboot()
        guest.output.wait_for(b"beat 1\n", seen)
        assert guest.memory.read(8 * MIB, 4096) == bytes(4096)


@pytest.fixture
def ksm() -> Iterator[Path]:
    """The host's page merger at work, put back afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root can run KSM")
    if not os.access(KSM, os.W_OK):
        pytest.skip("KSM cannot be run on this machine")
    folder = Path(KSM).parent
    before = {name: (folder / name).read_text() for name in ("run", "pages_to_scan", "sleep_millisecs")}
    for name, value in (("pages_to_scan", "100000"), ("sleep_millisecs", "1"), ("run", "1")):
        (folder / name).write_text(value)
    yield folder
    for name, value in before.items():
        (folder / name).write_text(value)


def test_two_guests_share_what_they_have_in_common(payloads: Payloads, ksm: Path) -> None:
    pages = 1000
    content = b"".join(index.to_bytes(4, "little") * 1024 for index in range(1, pages + 1))  # no two pages alike
    mergeable = MemoryConfig(16 * MIB, mergeable=True)

    def merged() -> int:
        """Pages of this process, and so of both guests. What the system counts may be of processes that are gone."""
        return int(Path("/proc/self/ksm_merging_pages").read_text())

    def is_shared(guest: Guest) -> bool:
        return guest.memory.read(8 * MIB, len(content)) == content

    with running_guest(payloads("idle"), memory=mergeable) as one, running_guest(payloads("idle"), memory=mergeable) as other:
        for guest in (one, other):
            guest.output.wait_for(BANNER)
            guest.memory.write(8 * MIB, content)
        # By a thread of the kernel's, of a lower priority, that looks at all processes' memory.
        wait_until(lambda: merged() >= 2 * pages or None, "the pages were not merged", 90)
        assert int((ksm / "pages_sharing").read_text()) >= pages
        assert is_shared(one) and is_shared(other)
        one.memory.write(8 * MIB, b"changed")
        assert is_shared(other)
        assert one.warnings == other.warnings == []
