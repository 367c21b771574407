"""Runs in the container: start, memory, VM exits, pause, consoles and idleness, ours and the peer's in turn.

    native.py RUNS [SUBJECT…]      of start, exit, pause, serial, idle; all of them without

Prints what rows.py says. Expects in /lab the payloads beat.bin, busy.bin, smp.bin and idle.bin, and the C loop `exits`.
Standard library only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import idle_vms, serial_rate
from bench.bus_call import BusCaller
from bench.machines import LAB, firmware, ours, qemu, read_until, started
from bench.qmp import Qmp
from bench.rows import Rows, Subjects, in_turn, run_subjects

EXITS = 100_000
PAUSES = 50
QMP_OPTION = ["-qmp", "unix:/run/bench.qmp,server=on,wait=off"]


def first_byte_ms(command: list[str]) -> float:
    begin = time.monotonic()
    with started(command) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return (time.monotonic() - begin) * 1e3


def resident_mib(command: list[str], ready: Callable[[], object]) -> float:
    with started(command) as process:
        read_until(process, b"beat 1\n")
        ready()
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def exit_us(command: list[str]) -> float:
    """The guest reads a port EXITS times between two bytes on its console."""
    with started(command) as process:
        assert process.stdout is not None
        process.stdout.read(2)
        begin = time.monotonic()
        process.stdout.read(1)
        return (time.monotonic() - begin) / EXITS * 1e6


def pause_resume_ms(command: list[str], ready: bytes, connect: Callable[[], Callable[[], None]]) -> float:
    """The median of pause and resume, both answered, while every vCPU is busy in the guest."""
    with started(command) as process:
        read_until(process, ready)
        pause_and_resume = connect()
        times = []
        for _ in range(PAUSES):
            begin = time.monotonic()
            pause_and_resume()
            times.append((time.monotonic() - begin) * 1e3)
            time.sleep(0.005)
        return sorted(times)[PAUSES // 2]


def over_bus(name: str) -> Callable[[], None]:
    caller = BusCaller(f"org.vmservice.VM1.{name}")
    caller.wait_for_name()

    def pause_and_resume() -> None:
        caller.call("Pause")
        caller.call("Resume")

    return pause_and_resume


def over_qmp() -> Callable[[], None]:
    qmp = Qmp("/run/bench.qmp")

    def pause_and_resume() -> None:
        qmp.execute("stop")
        qmp.execute("cont")

    return pause_and_resume


def exits_image() -> Path:
    """A payload in bytes: in al, dx EXITS times from the line status register, then a byte to COM1, for ever."""
    code = b"\x66\xb9" + EXITS.to_bytes(4, "little")  # mov ecx, EXITS
    code += b"\xba\xfd\x03" + b"\xec" + b"\x66\x49" + b"\x75\xfb"  # mov dx, 0x3fd; in al, dx; dec ecx; jnz to the in
    code += b"\xba\xf8\x03\xb0.\xee"  # mov dx, 0x3f8; mov al, '.'; out dx, al
    code += b"\xeb" + (-len(code) - 2 & 0xFF).to_bytes(1, "little")  # from the beginning
    return firmware(Path("/run/exits.bin"), code)


def start_rows() -> Rows:
    beat = LAB / "beat.bin"
    our_command = ours("beat", beat)
    return {
        "first byte, ms": {
            "vmservice": lambda: first_byte_ms(our_command),
            "peer": lambda: first_byte_ms(qemu(beat)),
        },
        "resident, MiB": {
            "vmservice": lambda: resident_mib(our_command, lambda: BusCaller("org.vmservice.VM1.beat").wait_for_name()),
            "peer": lambda: resident_mib(qemu(beat), lambda: None),
        },
    }


def exit_rows() -> Rows:
    image = exits_image()
    our_command = ours("exits", image, "--bus", "none")
    return {
        "VM exit, µs": {
            "vmservice": lambda: exit_us(our_command),
            "peer": lambda: exit_us([str(LAB / "exits"), str(image)]),
        }
    }


def pause_rows() -> Rows:
    def sides(name: str, image: Path, ready: bytes, vcpus: int) -> dict[str, Callable[[], float]]:
        our_command = ours(name, image, vcpus=vcpus)
        return {
            "vmservice": lambda: pause_resume_ms(our_command, ready, lambda: over_bus(name)),
            "peer": lambda: pause_resume_ms(qemu(image, *QMP_OPTION, vcpus=vcpus), ready, over_qmp),
        }

    return {
        "pause and resume, 1 vCPU, ms": sides("busy", LAB / "busy.bin", b"beat 1\n", 1),
        "pause and resume, 8 vCPUs, ms": sides("smp", LAB / "smp.bin", b"aps 7\n", 8),
    }


SUBJECTS: Subjects = {
    "start": lambda runs: in_turn(start_rows(), runs * 3),
    "exit": lambda runs: in_turn(exit_rows(), runs),
    "pause": lambda runs: in_turn(pause_rows(), runs),
    "serial": lambda runs: in_turn(serial_rate.rows(), runs),
    "idle": lambda runs: idle_vms.measure(max(2, runs // 2)),
}


if __name__ == "__main__":
    run_subjects(SUBJECTS, int(sys.argv[1]), sys.argv[2:])
