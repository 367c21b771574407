"""One KVM virtual machine: interrupt controllers, interrupts, eventfds, vCPUs."""

from __future__ import annotations

import ctypes
import fcntl
import os

from vmservice.errors import KvmError
from vmservice.kvm import abi, ioctl
from vmservice.kvm.memory_slots import MemorySlots
from vmservice.kvm.routes import Routes
from vmservice.kvm.vcpu import KvmVcpu

# A write of whatever size, for an ioeventfd without datamatch (KVM_CAP_IOEVENTFD_ANY_LENGTH).
ANY_SIZE = 0


class KvmVm:
    """A VM file descriptor and what may be asked of it. It does not own its vCPUs' descriptors."""

    def __init__(self, fd: int, run_bytes: int, coalesced_page: int, memory_slots: int) -> None:
        """`run_bytes` is the size of a vCPU's shared area, `coalesced_page` the page in it with the ring of gathered writes,
        `memory_slots` how many KVM has."""
        self.fd = fd
        self.memory = MemorySlots(fd, memory_slots)
        self.routes = Routes(fd)
        self._run_bytes = run_bytes
        self._coalesced_page = coalesced_page

    def set_tss_address(self, gpa: int) -> None:
        """Three pages that Intel hosts need for real mode; no RAM may be there."""
        ioctl.call(self.fd, abi.KVM_SET_TSS_ADDR, gpa, name="KVM_SET_TSS_ADDR")

    def set_identity_map_address(self, gpa: int) -> None:
        """One page more for the same purpose; to be set before the first vCPU."""
        address = (ctypes.c_char * 8).from_buffer_copy(gpa.to_bytes(8, "little"))
        ioctl.call(self.fd, abi.KVM_SET_IDENTITY_MAP_ADDR, address, name="KVM_SET_IDENTITY_MAP_ADDR")

    def enable_split_irqchip(self, pins: int) -> None:
        """Local APICs in the kernel; the IOAPIC, with `pins`, is ours."""
        cap = abi.kvm_enable_cap(cap=abi.KVM_CAP_SPLIT_IRQCHIP)
        cap.args[0] = pins
        ioctl.call(self.fd, abi.KVM_ENABLE_CAP, cap, name="KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)")

    def create_irqchip(self) -> None:
        """Local APICs, IOAPIC and PIC, all in the kernel."""
        ioctl.call(self.fd, abi.KVM_CREATE_IRQCHIP, name="KVM_CREATE_IRQCHIP")

    def create_pit(self) -> None:
        """A programmable interval timer whose speaker is silent: for hosts without a TSC deadline timer."""
        config = abi.kvm_pit_config(flags=abi.KVM_PIT_SPEAKER_DUMMY)
        ioctl.call(self.fd, abi.KVM_CREATE_PIT2, config, name="KVM_CREATE_PIT2")

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Drive an input of the in-kernel interrupt controllers."""
        ioctl.call(self.fd, abi.KVM_IRQ_LINE, abi.kvm_irq_level(irq=gsi, level=level), name="KVM_IRQ_LINE")

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt, from any thread.

        More than 0 where a vCPU took it. 0 or less where none did, for there is none of that APIC id, or its local APIC is
        disabled: the message is lost, as on a bus.
        """
        # fcntl.ioctl, which ctypes is much slower than where a struct has to be made for each call.
        try:
            taken: int = fcntl.ioctl(self.fd, abi.KVM_SIGNAL_MSI, bytearray(abi.MSI.pack(address, data, 0)))
        except OSError as error:
            return -(error.errno or 1)
        return taken

    def attach_eventfd(self, fd: int, gsi: int) -> None:
        """From now on a write to `fd` is an interrupt by way of `gsi`, which has a route; one of before is made up for."""
        ioctl.call(self.fd, abi.KVM_IRQFD, abi.kvm_irqfd(fd=fd, gsi=gsi), name="KVM_IRQFD")

    def detach_eventfd(self, fd: int, gsi: int) -> None:
        irqfd = abi.kvm_irqfd(fd=fd, gsi=gsi, flags=abi.KVM_IRQFD_FLAG_DEASSIGN)
        ioctl.call(self.fd, abi.KVM_IRQFD, irqfd, name="KVM_IRQFD(DEASSIGN)")

    def attach_ioeventfd(self, fd: int, address: int, size_bytes: int, *, pio: bool, datamatch: int | None = None) -> None:
        """From now on a write to `address` is a write of 1 to the eventfd `fd`, and no VM exit.

        One of `size_bytes`: 1, 2, 4, 8 or ANY_SIZE. With `datamatch` only a write of that value is; the others are exits as
        before. KvmError where another eventfd has it.
        """
        self._ioeventfd(fd, address, size_bytes, pio, datamatch, 0, "KVM_IOEVENTFD")

    def detach_ioeventfd(self, fd: int, address: int, size_bytes: int, *, pio: bool, datamatch: int | None = None) -> None:
        """Undo the `attach_ioeventfd` of the same arguments: those writes are VM exits again."""
        self._ioeventfd(fd, address, size_bytes, pio, datamatch, abi.KVM_IOEVENTFD_FLAG_DEASSIGN, "KVM_IOEVENTFD(DEASSIGN)")

    def _ioeventfd(
        self, fd: int, address: int, size_bytes: int, pio: bool, datamatch: int | None, flags: int, name: str
    ) -> None:
        flags |= abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch is not None else 0
        wanted = abi.kvm_ioeventfd(datamatch=datamatch or 0, addr=address, len=size_bytes, fd=fd, flags=flags)
        ioctl.call(self.fd, abi.KVM_IOEVENTFD, wanted, name=name)

    def coalesce_pio(self, port: int, size_bytes: int) -> None:
        """Let writes to these ports gather in the ring of `KvmVcpu.coalesced` until the next exit."""
        zone = abi.kvm_coalesced_mmio_zone(addr=port, size=size_bytes, pio=1)
        ioctl.call(self.fd, abi.KVM_REGISTER_COALESCED_MMIO, zone, name="KVM_REGISTER_COALESCED_MMIO")

    def create_vcpu(self, index: int) -> KvmVcpu:
        """The vCPU `index`, which is its APIC id too."""
        result = ioctl.raw(self.fd, abi.KVM_CREATE_VCPU, index)
        if result < 0:
            raise KvmError.from_os(f"KVM_CREATE_VCPU failed for vCPU {index}", OSError(-result, ""))
        return KvmVcpu(index, result, self._run_bytes, self._coalesced_page)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
