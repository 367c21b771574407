"""The addresses at which a guest notifies of its virtqueues, on KVM: a write there is one to an eventfd, and no VM exit."""

from __future__ import annotations

from vmservice.errors import KvmError
from vmservice.kvm.vm import ANY_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmservice.kvm.vm import KvmVm


class Doorbells:
    """`kicks` are eventfds by virtqueue; virtqueue n is notified at `offset` + `stride` * n in a BAR.

    `moved` is for `Bar.on_mapped`. Where KVM has no room for more (it has 1,000 a VM) the writes stay VM exits, and `warn` is
    told once.
    """

    def __init__(self, vm: KvmVm, kicks: Sequence[int], offset: int, stride: int, warn: Callable[[str], None]) -> None:
        self._vm = vm
        self._kicks = kicks
        self._offset = offset
        self._stride = stride
        self._warn = warn
        self._warned = False
        self._attached: list[tuple[int, int]] = []  # eventfd and address

    def moved(self, base: int | None) -> None:
        """The BAR answers at `base` from now on, or no longer."""
        while self._attached:
            fd, address = self._attached.pop()
            self._vm.detach_ioeventfd(fd, address, ANY_SIZE, pio=False)
        if base is None:
            return
        for index, fd in enumerate(self._kicks):
            address = base + self._offset + self._stride * index
            try:
                self._vm.attach_ioeventfd(fd, address, ANY_SIZE, pio=False)
            except KvmError as error:
                if not self._warned:
                    self._warned = True
                    self._warn(f"notifications of a PCI device take one more VM exit each: {error}")
                return
            self._attached.append((fd, address))
