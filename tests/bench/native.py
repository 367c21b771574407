"""Runs in the container: start, memory, VM exits, pause and idleness, ours and the peer's in turn; prints JSON.

    native.py RUNS

Expects in /lab: the heartbeat payloads beat.bin, smp.bin and idle.bin, and the C loop `exits`. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench.bus_call import BusCaller
from bench.qmp import Qmp

Samples = dict[str, dict[str, list[float]]]

LAB = Path("/lab")
CONFIGURATIONS = Path("/etc/vmservice")
EXITS = 100_000
MEMORY_MIB = 128
IDLE_SEC = 10.0
QEMU = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-M", "microvm,accel=kvm"]


def qemu(image: str, *options: str, vcpus: int = 1) -> list[str]:
    return [*QEMU, "-m", str(MEMORY_MIB), "-smp", str(vcpus), "-bios", str(LAB / image), "-serial", "stdio", *options]


def ours(name: str, image: str, *options: str, vcpus: int = 1) -> list[str]:
    """The unit's own command, with the console on standard output, where the peer has it."""
    CONFIGURATIONS.mkdir(exist_ok=True)
    (CONFIGURATIONS / f"{name}.toml").write_text(
        f'[firmware]\npath = "{LAB / image}"\n[memory]\nsize = "{MEMORY_MIB}M"\n'
        f'[cpus]\nboot = {vcpus}\n[serial]\nmode = "tty"\n'
    )
    return ["/usr/bin/vmservice", "run", *options, name]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "CACHE_DIRECTORY": "/var/cache/vmservice"}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[bytes], text: bytes) -> None:
    assert process.stdout is not None
    data = b""
    while text not in data:
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            raise SystemExit(f"{process.args!r} ended after {data!r}")
        data = (data + chunk)[-65536:]


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


def pause_resume_ms(command: list[str], connect: Callable[[], Callable[[], None]], rounds: int = 50) -> float:
    """The median of pause and resume, both answered, with eight busy vCPUs."""
    with started(command) as process:
        read_until(process, b"aps 7\n")
        pause_and_resume = connect()
        times = []
        for _ in range(rounds):
            begin = time.monotonic()
            pause_and_resume()
            times.append((time.monotonic() - begin) * 1e3)
            time.sleep(0.005)
        return sorted(times)[rounds // 2]


def idle_percent(command: list[str]) -> float:
    def cpu_sec(pid: int) -> float:
        return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9

    with started(command) as process:
        read_until(process, b"heartbeat\n")
        time.sleep(1.0)
        before = cpu_sec(process.pid)
        time.sleep(IDLE_SEC)
        return (cpu_sec(process.pid) - before) / IDLE_SEC * 100


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


def write_exits_image() -> None:
    """A payload in bytes: in al, dx EXITS times from the line status register, then a byte to COM1, for ever."""
    code = b"\x66\xb9" + EXITS.to_bytes(4, "little")  # mov ecx, EXITS
    code += b"\xba\xfd\x03" + b"\xec" + b"\x66\x49" + b"\x75\xfb"  # mov dx, 0x3fd; in al, dx; dec ecx; jnz to the in
    code += b"\xba\xf8\x03\xb0.\xee"  # mov dx, 0x3f8; mov al, '.'; out dx, al
    code += b"\xeb" + (-len(code) - 2 & 0xFF).to_bytes(1, "little")  # from the beginning
    image = bytearray(64 << 10)
    image[: len(code)] = code
    image[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"  # jmp to offset 0
    Path("/run/exits.bin").write_bytes(image)


def main(runs: int) -> None:
    write_exits_image()
    qmp_option = ["-qmp", "unix:/run/bench.qmp,server=on,wait=off"]
    exits = ours("exits", "beat.bin", "--bus", "none")
    configuration = CONFIGURATIONS / "exits.toml"
    configuration.write_text(configuration.read_text().replace("/lab/beat.bin", "/run/exits.bin"))
    ours_beat, ours_smp = ours("beat", "beat.bin"), ours("smp", "smp.bin", vcpus=8)
    measures: dict[str, dict[str, Callable[[], float]]] = {
        "first byte, ms": {
            "vmservice": lambda: first_byte_ms(ours_beat),
            "peer": lambda: first_byte_ms(qemu("beat.bin")),
        },
        "resident, MiB": {
            "vmservice": lambda: resident_mib(ours_beat, lambda: BusCaller("org.vmservice.VM1.beat").wait_for_name()),
            "peer": lambda: resident_mib(qemu("beat.bin"), lambda: None),
        },
        "VM exit, µs": {
            "vmservice": lambda: exit_us(exits),
            "peer": lambda: exit_us([str(LAB / "exits"), "/run/exits.bin"]),
        },
        "pause and resume, ms": {
            "vmservice": lambda: pause_resume_ms(ours_smp, lambda: over_bus("smp")),
            "peer": lambda: pause_resume_ms(qemu("smp.bin", *qmp_option, vcpus=8), over_qmp),
        },
    }
    time.sleep(3)  # a file that has just been written is not taken into the cache of parsed configurations
    samples: Samples = {}
    for name, sides in measures.items():
        count = runs * 3 if name == "first byte, ms" else runs
        for measure in sides.values():  # the first start reads everything from the disk
            measure()
        samples[name] = {side: [] for side in sides}
        for _ in range(count):
            for side, measure in sides.items():
                samples[name][side].append(measure())
    samples["idle, % of a core"] = {"vmservice": [idle_percent(ours("idle", "idle.bin")) for _ in range(2)]}
    print(json.dumps(samples))


if __name__ == "__main__":
    main(int(sys.argv[1]))
