"""pvpanic and the watchdog on the real /dev/kvm, with guests of a few bytes at the reset vector."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import Guest, needs_kvm, running_guest, wait_until

from vmservice.arch.x86_64 import layout
from vmservice.vm.events import EventKind, GuestEvent
from vmservice.vm.state import LastExit, State

pytestmark = [pytest.mark.kvm, needs_kvm]

PANICS = bytes.fromhex("ba 05 05 b0 01 ee f4 eb fd")  # mov dx, 0x505; mov al, 1; out dx, al; hlt, again
CRASH_LOADED = bytes.fromhex("ba 05 05 b0 02 ee f4 eb fd")
# mov dx, 0x624; mov ax, 5; out dx, ax: half a second; mov dl, 0x20; mov al, 1; out dx, al: start; hlt, again
HANGS = bytes.fromhex("ba 24 06 b8 05 00 ef b2 20 b0 01 ee f4 eb fd")


def image(directory: Path, code: bytes) -> Path:
    path = directory / "guest.bin"
    path.write_bytes(bytes((64 << 10) - 16) + code.ljust(16, b"\xf4"))
    return path


def wait_for_event(guest: Guest) -> GuestEvent:
    """The service calls what is due; here the test does."""

    def look() -> GuestEvent | None:
        guest.timers.run_due()
        return next(iter(guest.events.drain()), None)

    return wait_until(look, "the guest's watchdog did not fire")


def status(guest: Guest) -> bytes:
    board = guest.machines[-1].board
    return board.pio.read(layout.WATCHDOG_BASE + 1, 1)


def set_policy(guest: Guest, policy: str) -> None:
    guest.vm.reconfigure(boot_vcpus=1, on_reset="reboot", on_panic=policy, on_watchdog=policy)


@pytest.mark.parametrize(
    ("policy", "state"),
    [("reboot", State.RUNNING), ("exit", State.SHUTDOWN), ("pause", State.PAUSED)],
    ids=str,
)
@pytest.mark.parametrize(
    ("code", "kind", "wait"),
    [(PANICS, EventKind.PANIC, Guest.next_event), (HANGS, EventKind.WATCHDOG, wait_for_event)],
    ids=["panic", "watchdog"],
)
def test_policy(tmp_path: Path, policy: str, state: str, code: bytes, kind: str, wait: Callable[[Guest], GuestEvent]) -> None:
    with running_guest(image(tmp_path, code)) as guest:
        set_policy(guest, policy)
        event = wait(guest)
        assert event.kind == kind
        guest.vm.on_guest_event(event)
        assert (guest.vm.state, guest.vm.last_exit) == (state, kind)


def test_a_reset_by_the_watchdog_is_known_to_the_next_guest_only(tmp_path: Path) -> None:
    with running_guest(image(tmp_path, HANGS)) as guest:
        assert status(guest) == b"\x00"
        guest.vm.on_guest_event(wait_for_event(guest))
        assert (guest.vm.state, guest.vm.last_exit, status(guest)) == (State.RUNNING, LastExit.WATCHDOG, b"\x01")
        guest.vm.reboot()
        assert status(guest) == b"\x00"


def test_the_countdown_stands_still_while_the_vm_is_paused(tmp_path: Path) -> None:
    """Two seconds are over during the pause; after it a part is left, and then the watchdog fires."""
    with running_guest(image(tmp_path, HANGS.replace(b"\xb8\x05", b"\xb8\x14"))) as guest:
        board = guest.machines[-1].board
        assert board.watchdog is not None
        watchdog = board.watchdog
        wait_until(lambda: watchdog.state.running or None, "the guest did not start its watchdog")
        guest.vm.pause()
        until = time.monotonic() + 2.2
        while time.monotonic() < until:
            guest.timers.run_due()
            time.sleep(0.01)
        guest.vm.resume()
        guest.timers.run_due()
        assert guest.events.drain() == []
        assert wait_for_event(guest).kind == EventKind.WATCHDOG


def test_a_crash_kernel_is_only_noted(tmp_path: Path) -> None:
    with running_guest(image(tmp_path, CRASH_LOADED)) as guest:
        wait_until(lambda: guest.warnings or None, "nothing was noted")
        assert guest.warnings == ["the guest panicked, and goes on with its crash kernel"]
        assert guest.events.drain() == []


def test_a_panic_that_only_its_console_tells_is_heard_of(tmp_path: Path) -> None:
    with running_guest(image(tmp_path, HANGS)) as guest:
        for byte in b"Kernel panic - not syncing: No working init found.\r\n":
            guest.machines[-1].board.pio.write(layout.COM1_BASE, bytes([byte]))
        event = guest.next_event()
        assert (event.kind, event.detail) == (EventKind.PANIC_LINE, "No working init found.")
        reasons: list[str] = []
        guest.vm.on_panic_line = reasons.append
        guest.vm.on_guest_event(event)
        assert (reasons, guest.vm.state) == (["No working init found."], State.RUNNING)
