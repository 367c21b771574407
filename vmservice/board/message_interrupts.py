"""The MSI-X vectors of one PCI function on KVM: an eventfd each (irqfd), for this process or a back end in another to write to.

A vector that the guest has open has a route, from a GSI of its own to the message in the guest's table, and its eventfd is
attached to that GSI: a write of 1 is the interrupt, without an ioctl. A vector behind a mask has its eventfd detached: what is
written meanwhile waits in it, and KVM sends it when it is attached again. Without KVM's own routing each message goes out by
KVM_SIGNAL_MSI, and there is no eventfd.
"""

from __future__ import annotations

import os

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.kvm.vm import KvmVm


class MessageInterrupts:
    """Owns the eventfds. `first_gsi` and those behind it are the vectors', one each; None where KVM cannot route them.

    `signal` and `on_route_changed` are what `Msix` wants. A host that has no eventfd or route left costs the vector its
    eventfd, not its interrupts: `warn` is told once.
    """

    def __init__(self, vm: KvmVm, first_gsi: int | None, warn: Callable[[str], None]) -> None:
        self._vm = vm
        self._first_gsi = first_gsi
        self._warn = warn
        self._warned = False
        self._messages: dict[int, tuple[int, int]] = {}  # by vector: address and data, as last told
        self._eventfds: dict[int, int] = {}
        self._attached: set[int] = set()

    def signal(self, vector: int) -> None:
        """Send the vector's message now."""
        if vector in self._attached:
            os.eventfd_write(self._eventfds[vector], 1)
        else:
            self._vm.signal_msi(*self._messages[vector])

    def on_route_changed(self, vector: int, address: int, data: int, masked: bool) -> None:
        self._messages[vector] = (address, data)
        if self._first_gsi is None:
            return
        gsi = self._first_gsi + vector
        try:
            if masked:
                self._detach(vector, gsi)
            else:
                self._vm.routes.set_message(gsi, (address, data))
                self._attach(vector, gsi)
        except (HostError, OSError) as error:
            self._detach(vector, gsi)
            if not self._warned:
                self._warned = True
                why = error.strerror if isinstance(error, OSError) else error
                self._warn(f"an interrupt of a PCI device has no eventfd, and each takes one more system call: {why}")

    def eventfd(self, vector: int) -> int:
        """What a back end may write 1 to for this vector, whether it is masked now or not. OSError when there is none left."""
        if vector not in self._eventfds:
            self._eventfds[vector] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._eventfds[vector]

    def take_waiting(self, vector: int) -> bool:
        """Whether somebody has written to the vector's eventfd behind its mask. That is forgotten then."""
        if vector not in self._eventfds or vector in self._attached:
            return False
        try:
            return bool(os.eventfd_read(self._eventfds[vector]))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """The VM may be gone by then; an eventfd that is closed detaches itself."""
        self._attached.clear()
        while self._eventfds:
            os.close(self._eventfds.popitem()[1])

    def _attach(self, vector: int, gsi: int) -> None:
        if vector not in self._attached:
            self._vm.attach_eventfd(self.eventfd(vector), gsi)
            self._attached.add(vector)

    def _detach(self, vector: int, gsi: int) -> None:
        if vector in self._attached:
            self._attached.remove(vector)
            self._vm.detach_eventfd(self._eventfds[vector], gsi)
