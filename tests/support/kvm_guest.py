"""A firmware guest on the real /dev/kvm, driven from a test: what it prints, what it does, what it is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from support.backends import SinkConsole, fake_backends

from vmservice.board.timers import Timers
from vmservice.config.core import (
    ConsoleConfig,
    CpusConfig,
    FirmwareConfig,
    KernelConfig,
    MemoryConfig,
    ServiceConfig,
    SmbiosConfig,
)
from vmservice.config.load import Config, check_files
from vmservice.kvm.system import Kvm
from vmservice.memory.guest_memory import GuestMemory
from vmservice.vm.builder import build
from vmservice.vm.events import EventQueue, GuestEvent
from vmservice.vm.host_services import HostServices
from vmservice.vm.machine import KvmMachine
from vmservice.vm.vcpu import install_kick_handler
from vmservice.vm.vm import Vm

TIMEOUT_SEC = 60.0

T = TypeVar("T")

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no usable /dev/kvm on this machine")


class Output:
    """The serial console: bytes as they come, and waiting for what should."""

    def __init__(self) -> None:
        self.data = b""
        self._changed = threading.Condition()

    def write(self, data: bytes) -> None:
        with self._changed:
            self.data += data
            self._changed.notify_all()

    def wait_for(self, text: bytes, after: int = 0) -> int:
        """Wait until `text` has come behind position `after`; the position behind it."""
        with self._changed:
            if not self._changed.wait_for(lambda: text in self.data[after:], TIMEOUT_SEC):
                raise AssertionError(f"the guest did not print {text!r} after {self.data[after:]!r}")
            return self.data.index(text, after) + len(text)


class Guest:
    """A VM with a firmware payload, or a kernel, everything real; `tell` types on its console."""

    def __init__(
        self,
        image: Path,
        *,
        vcpus: int,
        max_vcpus: int,
        memory: MemoryConfig,
        masked: tuple[int, ...],
        is_kernel: bool,
        credentials: Mapping[str, bytes] | None = None,
    ) -> None:
        self.output = Output()
        self.messages: list[str] = []
        self.warnings: list[str] = []
        self.kvm = Kvm(masked=masked)
        self.events = EventQueue()
        self.config = _config(image, CpusConfig(vcpus, max_vcpus), memory, is_kernel)
        self.timers = Timers()
        host = HostServices(
            self.kvm,
            self.events,
            self.timers,
            fake_backends(SinkConsole(self.output.write)),
            on_input_room=lambda console: None,
            info=self.messages.append,
            warn=self.warnings.append,
            credentials=credentials,
        )
        self.machines: list[KvmMachine] = []
        self.vm = Vm(
            name="test",
            vcpus=vcpus,
            max_vcpus=max_vcpus,
            memory_bytes=memory.size_bytes,
            build=lambda count: self._remember(build(self.config, host, count)),
            call_later=self.timers.call_later,
            check=lambda: check_files(self.config),
        )

    def _remember(self, machine: KvmMachine) -> KvmMachine:
        self.machines.append(machine)
        return machine

    @property
    def memory(self) -> GuestMemory:
        """Of the machine that runs now."""
        return self.machines[-1].memory

    def tell(self, data: bytes) -> None:
        assert self.vm.console_input(data) == len(data)

    def take_gathered(self) -> None:
        """What the guest has written and KVM still keeps in its ring goes to the console."""
        board = self.machines[-1].board
        with board.lock:
            board.take_coalesced()

    def next_event(self) -> GuestEvent:
        """What the guest does to the machine next; the caller hands it to `vm.on_guest_event`, as the service's loop would."""
        return wait_until(lambda: next(iter(self.events.drain()), None), "the guest did nothing to its machine")

    def close(self) -> None:
        self.vm.close()
        self.events.close()
        self.timers.close()
        self.kvm.close()


@contextmanager
def running_guest(
    image: Path,
    *,
    vcpus: int = 1,
    max_vcpus: int = 0,
    masked: tuple[int, ...] = (),
    memory: MemoryConfig | None = None,
    is_kernel: bool = False,
    credentials: Mapping[str, bytes] | None = None,
) -> Iterator[Guest]:
    """A guest that has been booted, with 16 MiB unless `memory` says otherwise. `image` is a firmware unless `is_kernel`.

    The kick signal's handler stays: a guest that runs beside this one needs it still."""
    install_kick_handler()
    guest = Guest(
        image,
        vcpus=vcpus,
        max_vcpus=max_vcpus or vcpus,
        memory=memory or MemoryConfig(16 << 20),
        masked=masked,
        is_kernel=is_kernel,
        credentials=credentials,
    )
    try:
        guest.vm.boot()
        yield guest
    finally:
        guest.close()


@contextmanager
def hanging_serial(guest: Guest) -> Iterator[None]:
    """From the next byte that the guest writes to its serial console on, the vCPU that wrote it hangs in the device, whose lock
    it holds. Afterwards that byte is written and the guest goes on."""
    come, go_on = threading.Event(), threading.Event()
    serial = guest.machines[-1].board.serial
    assert serial is not None
    write = serial.write

    def hang(offset: int, data: bytes) -> None:
        come.set()
        go_on.wait(TIMEOUT_SEC)
        write(offset, data)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serial, "write", hang)
            assert come.wait(TIMEOUT_SEC), "the guest wrote nothing"
            yield
    finally:
        go_on.set()


def vcpu_threads() -> list[str]:
    """The names of this process' threads that are a vCPU's. One that has just ended may still be among them."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):
            names.append(Path(f"/proc/self/task/{task}/comm").read_text().strip())
    return sorted(name for name in names if name.startswith("vcpu"))


def wait_until(look: Callable[[], T | None], otherwise: str, timeout_sec: float = TIMEOUT_SEC) -> T:
    """The first thing that `look` returns other than None."""
    deadline = time.monotonic() + timeout_sec
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.001)
    raise AssertionError(otherwise)


def _config(image: Path, cpus: CpusConfig, memory: MemoryConfig, is_kernel: bool) -> Config:
    return Config(
        name="test",
        path="/nowhere/test.toml",
        kernel=KernelConfig(str(image), None, "") if is_kernel else None,
        firmware=None if is_kernel else FirmwareConfig(str(image)),
        cpus=cpus,
        memory=memory,
        serial=ConsoleConfig("null", None),
        service=ServiceConfig("exit", "reboot", 120),
        smbios=SmbiosConfig(),
    )
