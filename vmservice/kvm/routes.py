"""KVM's table of interrupt routes: which message a GSI stands for. KVM takes the whole table at once."""

from __future__ import annotations

import _thread
import ctypes

from vmservice.errors import KvmError
from vmservice.kvm import abi, ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    Message = tuple[int, int]
    """Address and data of a message-signalled interrupt."""


class Routes:
    """The routes of the VM with the descriptor `vm_fd`; any thread may change them.

    KVM takes or refuses a table as a whole: each is told under the lock, lest an older one be the last.
    """

    def __init__(self, vm_fd: int) -> None:
        self._fd = vm_fd
        self._lock = _thread.allocate_lock()
        self._pins: dict[int, Message] = {}
        self._messages: dict[int, Message] = {}

    def set_pins(self, routes: list[Message | None]) -> None:
        """What each pin of the IOAPIC stands for, or None: tells KVM for which vectors an EOI must come to us."""
        with self._lock:
            before, self._pins = self._pins, {gsi: route for gsi, route in enumerate(routes) if route is not None}
            try:
                self._tell()
            except KvmError:
                self._pins = before
                raise

    def set_message(self, gsi: int, message: Message) -> None:
        """What `gsi`, which is no pin's, stands for; KvmError, with the route gone, when KVM refuses it."""
        with self._lock:
            if self._messages.get(gsi) == message:
                return
            self._messages[gsi] = message
            try:
                self._tell()
            except KvmError:
                del self._messages[gsi]
                raise

    def remove(self, gsi: int) -> None:
        """Forget the route of a `gsi` that is no pin's, if it has one."""
        with self._lock:
            if self._messages.pop(gsi, None) is not None:
                self._tell()

    def _tell(self) -> None:
        used = [*self._pins.items(), *self._messages.items()]
        head_bytes = ctypes.sizeof(abi.kvm_irq_routing)
        buffer = ctypes.create_string_buffer(head_bytes + max(len(used), 1) * ctypes.sizeof(abi.kvm_irq_routing_entry))
        abi.kvm_irq_routing.from_buffer(buffer).nr = len(used)
        entries = (abi.kvm_irq_routing_entry * len(used)).from_buffer(buffer, head_bytes)
        for entry, (gsi, (address, data)) in zip(entries, used, strict=True):
            entry.gsi = gsi
            entry.type = abi.KVM_IRQ_ROUTING_MSI
            entry.address_lo = address & 0xFFFFFFFF
            entry.address_hi = address >> 32
            entry.data = data
        ioctl.call(self._fd, abi.KVM_SET_GSI_ROUTING, buffer, name="KVM_SET_GSI_ROUTING")
