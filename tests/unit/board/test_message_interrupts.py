"""MSI-X by eventfd: a mask detaches it, a new message moves its route, and a host without room for it costs no interrupt."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from vmservice.board.message_interrupts import MessageInterrupts
from vmservice.devices.pci.config_space import ConfigSpace
from vmservice.devices.pci.msix import CONTROL_ENABLE, CONTROL_FUNCTION_MASK, MESSAGE_CONTROL, Msix
from vmservice.errors import KvmError

FIRST_GSI = 24
ADDRESS = 0xFEE00000


class Routes:
    def __init__(self, call: Callable[[str], None]) -> None:
        self._call = call
        self.messages: dict[int, tuple[int, int]] = {}

    def set_message(self, gsi: int, message: tuple[int, int]) -> None:
        self._call("route")
        self.messages[gsi] = message


class Vm:
    """Routes and attached eventfds, as KVM has them; `calls` in their order."""

    def __init__(self) -> None:
        self.routes = Routes(self._call)
        self.attached: dict[int, int] = {}
        self.calls: list[str] = []
        self.messages: list[tuple[int, int]] = []
        self.refuse = ""

    def attach_eventfd(self, fd: int, gsi: int) -> None:
        self._call("attach")
        assert gsi in self.routes.messages and gsi not in self.attached
        self.attached[gsi] = fd

    def detach_eventfd(self, fd: int, gsi: int) -> None:
        self._call("detach")
        assert self.attached.pop(gsi) == fd

    def signal_msi(self, address: int, data: int) -> int:
        self.messages.append((address, data))
        return 1

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.refuse:
            raise KvmError(f"KVM refuses to {name}", errno.ENOSPC)


class Function:
    """MSI-X of two vectors, with the guest's side of it."""

    def __init__(self, first_gsi: int | None = FIRST_GSI) -> None:
        self.vm = Vm()
        self.warnings: list[str] = []
        self.interrupts = MessageInterrupts(self.vm, first_gsi, self.warnings.append)  # type: ignore[arg-type]
        self.config = ConfigSpace()
        self.msix = Msix(
            self.config,
            2,
            table=(0, 0),
            pending_bits=(0, 0x800),
            signal=self.interrupts.signal,
            on_route_changed=self.interrupts.on_route_changed,
            take_waiting=self.interrupts.take_waiting,
        )

    def control(self, value: int) -> None:
        self.config.write(self.msix.capability + MESSAGE_CONTROL, value.to_bytes(2, "little"))
        self.msix.config_written()

    def entry(self, vector: int, data: int, *, masked: bool = False) -> None:
        """As Linux does: behind the mask address and data, then the mask."""
        self.msix.write_table(16 * vector + 12, struct.pack("<I", 1))
        self.msix.write_table(16 * vector, struct.pack("<QI", ADDRESS, data))
        self.msix.write_table(16 * vector + 12, struct.pack("<I", masked))

    def taken(self, vector: int) -> int:
        """How often the eventfd of `vector` was written to."""
        try:
            return os.eventfd_read(self.interrupts.eventfd(vector))
        except BlockingIOError:
            return 0

    @property
    def pending(self) -> int:
        return self.msix.read_pending(0, 8)[0]


@pytest.fixture
def function() -> Iterator[Function]:
    function = Function()
    yield function
    function.interrupts.close()


def test_a_vector_that_the_guest_has_opened_goes_by_its_eventfd(function: Function) -> None:
    function.control(CONTROL_ENABLE)
    function.entry(1, 0x41)
    assert function.vm.routes.messages == {FIRST_GSI + 1: (ADDRESS, 0x41)}
    assert function.vm.attached == {FIRST_GSI + 1: function.interrupts.eventfd(1)}
    for _ in range(3):
        function.msix.interrupt(1)
    assert function.taken(1) == 3
    assert function.vm.messages == []


def test_no_eventfd_is_attached_before_there_is_a_message(function: Function) -> None:
    function.entry(0, 0x41)
    assert function.vm.calls == []
    function.control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK)
    assert function.vm.calls == []
    function.control(CONTROL_ENABLE)
    assert function.vm.calls == ["route", "attach"]


def test_masked_it_is_detached_and_what_waits_comes_afterwards(function: Function) -> None:
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.vm.calls.clear()
    function.msix.write_table(12, struct.pack("<I", 1))
    assert function.vm.calls == ["detach"]
    function.msix.interrupt(0)
    function.msix.interrupt(0)
    assert function.taken(0) == 0
    assert function.pending == 1
    function.msix.write_table(12, struct.pack("<I", 0))
    assert function.vm.calls[1:] == ["route", "attach"]
    assert function.taken(0) == 1
    assert function.pending == 0


def test_the_mask_of_the_function_holds_for_every_vector(function: Function) -> None:
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.entry(1, 0x42)
    function.control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK)
    assert function.vm.attached == {}
    function.msix.interrupt(1)
    assert function.pending == 2
    function.control(CONTROL_ENABLE)
    assert function.vm.attached.keys() == {FIRST_GSI, FIRST_GSI + 1}
    assert (function.taken(0), function.taken(1)) == (0, 1)
    function.control(0)
    assert function.vm.attached == {}


def test_a_back_end_keeps_its_eventfd_over_masks_and_moves(function: Function) -> None:
    fd = function.interrupts.eventfd(0)
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.entry(0, 0x52)
    assert function.vm.routes.messages == {FIRST_GSI: (ADDRESS, 0x52)}
    assert function.vm.attached == {FIRST_GSI: fd}
    assert function.interrupts.eventfd(0) == fd
    assert os.get_inheritable(fd) is False


def test_what_a_back_end_writes_behind_a_mask_is_pending(function: Function) -> None:
    """It is in the pending bits that the guest reads, and in the state, from where another machine sends it."""
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.entry(1, 0x42, masked=True)
    os.eventfd_write(function.interrupts.eventfd(1), 1)
    assert function.pending == 2
    assert function.msix.state.pending == 2
    assert function.taken(1) == 0, "it is in one place only"
    function.msix.write_table(16 + 12, struct.pack("<I", 0))
    assert function.taken(1) == 1
    assert function.pending == 0
    os.eventfd_write(function.interrupts.eventfd(0), 1)
    assert function.pending == 0, "what KVM has is no business of the pending bits"


def test_a_message_that_changes_while_open_moves_the_route_only(function: Function) -> None:
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.vm.calls.clear()
    function.msix.write_table(8, struct.pack("<I", 0x61))
    assert function.vm.calls == ["route"]
    assert function.vm.routes.messages == {FIRST_GSI: (ADDRESS, 0x61)}


@pytest.mark.parametrize("refuse", ["route", "attach"])
def test_a_host_without_room_costs_no_interrupt(function: Function, refuse: str) -> None:
    function.vm.refuse = refuse
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.entry(1, 0x42)
    function.msix.interrupt(1)
    assert function.vm.messages == [(ADDRESS, 0x42)]
    assert len(function.warnings) == 1
    assert f"KVM refuses to {refuse}" in function.warnings[0]
    function.vm.refuse = ""
    function.entry(1, 0x43)
    function.msix.interrupt(1)
    assert function.taken(1) == 1


def test_a_process_without_descriptors_costs_no_interrupt(function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "eventfd", refuse)
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.msix.interrupt(0)
    assert function.vm.messages == [(ADDRESS, 0x41)]
    assert "Too many open files" in function.warnings[0]


def test_without_routing_every_message_is_a_system_call() -> None:
    function = Function(first_gsi=None)
    function.control(CONTROL_ENABLE)
    function.entry(0, 0x41)
    function.msix.interrupt(0)
    function.msix.write_table(12, struct.pack("<I", 1))
    function.msix.interrupt(0)
    assert function.vm.messages == [(ADDRESS, 0x41)]
    assert function.vm.calls == function.warnings == []
    function.interrupts.close()


def test_closing_leaves_no_descriptor(function: Function) -> None:
    before = len(os.listdir("/proc/self/fd"))
    function.control(CONTROL_ENABLE)
    for vector in (0, 1):
        function.entry(vector, 0x41 + vector)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    function.interrupts.close()
    function.interrupts.close()
    assert len(os.listdir("/proc/self/fd")) == before
