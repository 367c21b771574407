"""A board without KVM, and who is told what its guest does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from vmservice.board.board import Board
from vmservice.board.resources import Resources
from vmservice.board.slot import Services
from vmservice.board.timers import Timers
from vmservice.memory.guest_memory import GuestMemory

ADDRESS_BITS = 40


class RecordingGuest:
    """What the guest did to its whole machine, by name and in order."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def poweroff(self) -> None:
        self.did.append("poweroff")

    def reset(self, how: str) -> None:
        assert how
        self.did.append("reset")

    def panic(self) -> None:
        self.did.append("panic")

    def watchdog(self) -> None:
        self.did.append("watchdog")

    def vcpus_changed(self) -> None:
        self.did.append("vcpus")


def make_services(
    board: Board,
    memory: GuestMemory,
    timers: Timers,
    *,
    post: Callable[[Callable[[], None]], None] = lambda call: None,
    warn: Callable[[str], None] = lambda text: None,
    fault: Callable[[str], None] = lambda reason: None,
) -> Services:
    """What the slots of a machine with `board` share."""
    return Services(memory, timers, board.resources, post=post, on_input_room=lambda label: None, warn=warn, fault=fault)


def make_board(
    memory: GuestMemory,
    *,
    vm: Any = None,
    timers: Timers,
    guest: RecordingGuest | None = None,
    split_irqchip: bool = True,
    vcpus: int = 1,
    max_vcpus: int = 1,
    console: Callable[[bytes], None] | None = None,
    on_console_room: Callable[[str], None] = lambda console: None,
    device_memory: Sequence[int] = (),
) -> Board:
    """`vm` stands for KVM; one that takes messages and routes and forgets them unless given."""
    if vm is None:
        routes = SimpleNamespace(set_pins=lambda routes: None)
        vm = SimpleNamespace(signal_msi=lambda *message: 1, routes=routes)
    return Board(
        vm,
        memory,
        Resources(memory.end, ADDRESS_BITS, device_memory),
        timers,
        guest if guest is not None else RecordingGuest(),
        split_irqchip=split_irqchip,
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        console=console,
        on_console_room=on_console_room,
        watchdog_fired=False,
        on_watchdog=lambda: None,
        warn=lambda text: None,
    )
