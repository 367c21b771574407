"""The guest's two consoles: what is typed at one goes to that one, and the virtio-console is as large as its terminal."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import cast

import pytest
from support.guest_ram import MIB, guest_ram

from vmservice.config import ConsoleConfig, VirtioConfig
from vmservice.host.console import NullConsole, PtyConsole
from vmservice.service.main import Consoles
from vmservice.vm.chipset import Chipset
from vmservice.vm.events import EventQueue
from vmservice.vm.machine import TYPED_LIMIT_BYTES, KvmMachine
from vmservice.vm.peripherals import Peripherals


class Receiver:
    """A device that takes up to `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.received = b""

    def take(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.received += taken
        return len(taken)


def test_input_goes_to_the_console_where_it_was_typed() -> None:
    uart, hvc, events = Receiver(4), Receiver(3), EventQueue()
    machine = KvmMachine(events)
    machine.chipset = cast(Chipset, SimpleNamespace(lock=threading.Lock(), serial=SimpleNamespace(receive=uart.take)))
    machine.peripherals = cast(Peripherals, SimpleNamespace(console=SimpleNamespace(receive=lambda port, data: hvc.take(data))))
    assert machine.console_input(b"serial") == 6
    assert machine.console_input(b"virtio", "hvc") == 6
    assert (uart.received, hvc.received) == (b"seri", b"vir")
    uart.room = hvc.room = 100
    machine.feed_hvc()
    assert (uart.received, hvc.received) == (b"seri", b"virtio")
    machine.feed_serial()
    assert uart.received == b"serial"
    # A guest that does not read its one console can be typed at on the other.
    hvc.room = 0
    assert machine.console_input(b"x" * (TYPED_LIMIT_BYTES + 1), "hvc") == TYPED_LIMIT_BYTES
    assert machine.console_input(b"y", "hvc") == 0
    assert machine.console_input(b"y") == 1
    events.close()


def test_every_console_that_can_be_typed_at_is_read() -> None:
    class Log:
        def info(self, text: str) -> None: ...

    consoles = Consoles.__new__(Consoles)
    serial, hvc = PtyConsole(Log()), PtyConsole(Log(), "hvc")  # type: ignore[arg-type]
    consoles.serial, consoles.hvc = serial, hvc
    assert consoles.inputs() == [("serial", serial.input_fd), ("hvc", hvc.input_fd)]
    consoles.serial = NullConsole()
    assert consoles.inputs() == [("hvc", hvc.input_fd)]
    consoles.hvc = None
    assert consoles.inputs() == []
    serial.close()
    hvc.close()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_the_virtio_console_follows_its_terminal(transport: str) -> None:
    """From the first moment on, and in a machine that comes after a reset too: each asks for itself."""
    size = (80, 24)
    memory = guest_ram((0, 2 * MIB))
    chipset = Chipset(
        SimpleNamespace(signal_msi=None, set_msi_routes=None),  # type: ignore[arg-type]
        memory,
        split_irqchip=True,
        console=None,
        cpu_hotplug=None,
        on_console_room=lambda: None,
        on_sleep=lambda: None,
        on_reset=lambda: None,
    )
    peripherals = Peripherals(
        VirtioConfig(transport, ConsoleConfig("null", None), False, None),
        vm=None,  # type: ignore[arg-type]
        memory=memory,
        chipset=chipset,
        address_bits=40,
        hvc=lambda data: None,
        hvc_size=lambda: size,
        on_console_room=lambda: None,
        on_backlog=lambda: None,
        warn=lambda text: None,
    )
    assert peripherals.console is not None
    assert peripherals.console.read_config(0, 4) == bytes((80, 0, 24, 0))
    size = (300, 43)
    peripherals.tick()
    assert peripherals.console.read_config(0, 4) == bytes((44, 1, 43, 0))
    peripherals.close()
    memory.close()
