"""Where a guest is, told of vCPUs that hold, and why it was reset, on the real /dev/kvm."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import hanging_serial, needs_kvm, running_guest, wait_until
from support.payload import BANNER

from vmservice.vm.events import EventKind
from vmservice.vm.state import LastExit

pytestmark = [pytest.mark.kvm, needs_kvm]

Payloads = Callable[[str], Path]

RESET_VECTOR = 16  # bytes before the end of an image


# jmp f000:ff00, in RAM, where a copy of the image is; there nop; mov ax, 0x4321; jmp to itself
TO_LOW_MEMORY = bytes.fromhex("ea 00ff 00f0")
SPINS = bytes.fromhex("90 b82143 ebfe")


def spinning(directory: Path) -> Path:
    path = directory / "guest.bin"
    data = bytearray(64 << 10)
    data[0xFF00 : 0xFF00 + len(SPINS)] = SPINS
    data[-RESET_VECTOR : -RESET_VECTOR + len(TO_LOW_MEMORY)] = TO_LOW_MEMORY
    path.write_bytes(data)
    return path


def test_a_spinning_guest(tmp_path: Path) -> None:
    with running_guest(spinning(tmp_path)) as guest:

        def text_of_the_loop() -> str | None:
            text = "\n".join(guest.vm.describe())
            return text if "RAX 0x4321" in text else None

        text = wait_until(text_of_the_loop, "the guest did not come to its loop")
        for line in (
            r"RIP 0xff04, real mode, ring 0, CS 0xf000 base 0xf0000, RSP 0x0, RFLAGS 0x2 \(interrupts off\)",
            r"RAX 0x4321, RBX 0x0, .*, R15 0x0",
            r"CR0 0x60000010, CR2 0x0, CR3 0x0, CR4 0x0, CR8 0x0, EFER 0x0",
            r"runs; pending: nothing",
            r"local APIC 0 \(xAPIC, off\), TPR 0x0; serves nothing, waiting nothing, level nothing",
            r"timer one-shot, vector 0x0, masked, initial 0x0, current 0x0, divide 0x0",
            r"TSC 0x[0-9a-f]+, \d+ kHz; deadline none",
            r"Code: (00 ){12}90 b8 21 43 <eb> fe( 00){46}",
        ):
            assert re.search(f"^vCPU 0: {line}$", text, re.MULTILINE), (line, text)


def test_it_goes_on_afterwards_and_a_paused_one_stays_paused(payloads: Payloads) -> None:
    with running_guest(payloads("smp"), vcpus=3) as guest:
        guest.output.wait_for(b"aps 2\n")
        for _ in range(20):
            text = "\n".join(guest.vm.describe())
            assert {line.split(":")[0] for line in text.splitlines()} == {"vCPU 0", "vCPU 1", "vCPU 2"}
        assert text.count("Code: ") == 3
        guest.output.wait_for(b"beat ", len(guest.output.data))
        guest.vm.pause()
        paused = guest.vm.describe()
        seen = guest.output.data
        rips = [line for line in paused if "RIP" in line]
        assert len(rips) == 3
        assert [line for line in guest.vm.describe() if "RIP" in line] == rips
        assert guest.output.data == seen
        guest.vm.resume()
        guest.output.wait_for(b"beat ", len(seen))


def test_the_timer_of_a_beating_guest(payloads: Payloads) -> None:
    with running_guest(payloads("beat")) as guest:
        guest.output.wait_for(b"beat 1\n")
        text = "\n".join(guest.vm.describe())
        assert re.search(r"timer periodic, vector 0x26, initial 0x5f5e100, current 0x[0-9a-f]+, divide 0xb", text), text
        assert re.search(r"local APIC 0 \(xAPIC, on\)", text), text


def test_a_vcpu_that_does_not_stop_tells_where_its_thread_is(payloads: Payloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmservice.vm.machine._DESCRIBE_TIMEOUT_SEC", 2.0)
    with running_guest(payloads("smp"), vcpus=2) as guest:
        guest.output.wait_for(BANNER)
        with hanging_serial(guest):
            lines = guest.vm.describe()
        stuck = [line for line in lines if line.startswith("vCPU 0")]
        assert len(stuck) == 1
        assert re.fullmatch(r"vCPU 0: does not leave its exit; its thread is in threading, wait\(\), line \d+", stuck[0])
        assert any(line.startswith("vCPU 1: RIP ") for line in lines)
        guest.output.wait_for(b"beat ", len(guest.output.data))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (b"r", r"it pulsed the reset line of the keyboard controller"),
        (b"a", r"it wrote to the reset register of ACPI"),
        (b"t", r"triple fault of vCPU 0 at (RIP 0x[0-9a-f]+, CS base 0x[0-9a-f]+, CR0 .*, CR3 0x[0-9a-f]+, CR2 .*|a place .*)"),
    ],
    ids=["keyboard controller", "reset register", "triple fault"],
)
def test_why_it_was_reset(payloads: Payloads, how: bytes, said: str) -> None:
    with running_guest(payloads("beat")) as guest:
        guest.output.wait_for(BANNER)
        guest.tell(how)
        event = guest.next_event()
        assert (event.kind, bool(re.fullmatch(said, event.detail))) == (EventKind.RESET, True), event.detail
        guest.vm.on_guest_event(event)
        assert (guest.vm.last_exit, guest.vm.last_detail) == (LastExit.RESET, event.detail)
