"""VM exits: what a vCPU's thread does each time the guest needs the board."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import layout
from vmservice.kvm import abi, exits
from vmservice.vm.vcpu import unhandled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mmap import mmap

    from vmservice.board.board import Board
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.vm.guest_requests import GuestRequests

# Looked up at each exit: globals of this module are one step nearer than those of another.
_EXIT_IO = abi.KVM_EXIT_IO
_EXIT_DATA = abi.RUN_EXIT
_unpack_pio = exits.IO.unpack_from

_COM1 = layout.COM1_BASE
_COM1_END = layout.COM1_BASE + layout.COM1_LEN

_SYSTEM_EVENT_SHUTDOWN = 1  # <linux/kvm.h> KVM_SYSTEM_EVENT_*
_SYSTEM_EVENT_RESET = 2
_SYSTEM_EVENT_DATA = 16  # so many values there is room for


class ExitHandler:
    """Hands exits to `board`. `handle` is called in the vCPUs' threads, several at a time."""

    def __init__(self, board: Board, guest: GuestRequests) -> None:
        self._board = board
        self._pio = board.pio
        self._guest = guest

    def handle(self, vcpu: KvmVcpu, reason: int) -> bool:
        """One exit; False when the guest is to run no further."""
        if reason == _EXIT_IO:
            # The path of nearly every exit: kept short rather than split up.
            page = vcpu.page
            direction, size, port, count, offset = _unpack_pio(page, _EXIT_DATA)
            if self._board.is_coalescing:
                self._take_coalesced(port)
            claim = self._pio.by_address.get(port)
            if claim is not None and count == 1 and port + size <= claim[2]:
                device, base, _, lock = claim
                with lock:
                    if direction:  # KVM_EXIT_IO_OUT
                        device.write(port - base, page[offset : offset + size])
                    else:
                        page[offset : offset + size] = device.read(port - base, size)
            else:
                self._handle_any_pio(page, direction, size, port, count, offset)
        elif reason == abi.KVM_EXIT_MMIO:
            self._handle_mmio(vcpu)
        elif reason == abi.KVM_EXIT_IOAPIC_EOI and self._board.ioapic is not None:
            self._board.ioapic.end_of_interrupt(vcpu.page[_EXIT_DATA])
        elif reason == abi.KVM_EXIT_SHUTDOWN:  # a triple fault, which resets a PC
            from vmservice.kvm.describe import where

            self._guest.reset(f"triple fault of vCPU {vcpu.index} {where(vcpu)}")
        elif reason == abi.KVM_EXIT_SYSTEM_EVENT:
            self._handle_system_event(vcpu)
        elif reason != abi.KVM_EXIT_INTR:
            self._guest.fault(unhandled(vcpu, reason))
        return not self._guest.has_left

    def _handle_any_pio(self, page: mmap, direction: int, size: int, port: int, count: int, offset: int) -> None:
        """String instructions, and ports that are nobody's or, in part, another device's."""
        for start in range(offset, offset + size * count, size):
            if direction:
                self._pio.write(port, page[start : start + size])
            else:
                page[start : start + size] = self._pio.read(port, size)

    def _take_coalesced(self, port: int) -> None:
        board = self._board
        with board.lock:
            board.take_coalesced()
            if _COM1 <= port < _COM1_END:
                board.expect_coalesced()

    def _handle_mmio(self, vcpu: KvmVcpu) -> None:
        page = vcpu.page
        address, data, size, is_write = exits.MMIO.unpack_from(page, _EXIT_DATA)
        board = self._board
        if board.is_coalescing:
            with board.lock:
                board.take_coalesced()
        if is_write:
            board.mmio.write(address, data[:size])
        else:
            page[exits.MMIO_DATA : exits.MMIO_DATA + size] = board.mmio.read(address, size)

    def _handle_system_event(self, vcpu: KvmVcpu) -> None:
        # type, ndata (u32 each), data (u64 each)
        kind, count = struct.unpack_from("<II", vcpu.page, _EXIT_DATA)
        data = struct.unpack_from(f"<{min(count, _SYSTEM_EVENT_DATA)}Q", vcpu.page, _EXIT_DATA + 8)
        if kind == _SYSTEM_EVENT_SHUTDOWN:
            self._guest.poweroff()
        elif kind == _SYSTEM_EVENT_RESET:
            values = f" with {', '.join(f'{value:#x}' for value in data)}" if data else ""
            self._guest.reset(f"vCPU {vcpu.index} asked KVM for it{values}")
        else:
            self._guest.fault(f"vCPU {vcpu.index}: the guest crashed (KVM system event {kind})")
