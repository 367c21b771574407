"""The part of <linux/kvm.h> and <asm/kvm.h> (x86) that we use, under the headers' own names."""

from __future__ import annotations

import ctypes
import struct
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64

from vmservice.kvm.ioctl import io, ior, iow, iowr

KVM_API_VERSION = 12


class kvm_userspace_memory_region(ctypes.Structure):
    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


_REGS = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"


class kvm_regs(ctypes.Structure):
    _fields_ = tuple((name, c_uint64) for name in _REGS.split())


class kvm_segment(ctypes.Structure):
    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class kvm_dtable(ctypes.Structure):
    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


class kvm_sregs(ctypes.Structure):
    _fields_ = (
        *((name, kvm_segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    )


class kvm_fpu(ctypes.Structure):
    _fields_ = (
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )


class kvm_lapic_state(ctypes.Structure):
    _fields_ = (("regs", c_uint8 * 0x400),)


class kvm_msr_entry(ctypes.Structure):
    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class kvm_msrs(ctypes.Structure):
    """The head; `nmsrs` entries follow."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32))


class kvm_cpuid2(ctypes.Structure):
    """The head; `nent` entries (CPUID_ENTRY) follow."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32))


class kvm_enable_cap(ctypes.Structure):
    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class kvm_pit_config(ctypes.Structure):
    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class kvm_irq_level(ctypes.Structure):
    _fields_ = (("irq", c_uint32), ("level", c_uint32))


class kvm_irq_routing_entry(ctypes.Structure):
    """With the `msi` arm of the union spelt out; the rest of its 32 bytes is padding."""

    _fields_ = (
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("msi_pad", c_uint32),
        ("union_pad", c_uint32 * 4),
    )


class kvm_irq_routing(ctypes.Structure):
    """The head; `nr` entries follow."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32))


class kvm_irqfd(ctypes.Structure):
    _fields_ = (("fd", c_uint32), ("gsi", c_uint32), ("flags", c_uint32), ("resamplefd", c_uint32), ("pad", c_uint8 * 16))


class kvm_ioeventfd(ctypes.Structure):
    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class kvm_coalesced_mmio_zone(ctypes.Structure):
    _fields_ = (("addr", c_uint64), ("size", c_uint32), ("pio", c_uint32))


# struct kvm_msi: address_lo and address_hi, data, flags; devid and padding.
MSI = struct.Struct("<QII16x")

# struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx; 12 bytes of padding.
CPUID_ENTRY = struct.Struct("<7I12x")

KVM_GET_API_VERSION = io(0x00)
KVM_CREATE_VM = io(0x01)
KVM_CHECK_EXTENSION = io(0x03)
KVM_GET_VCPU_MMAP_SIZE = io(0x04)
KVM_GET_SUPPORTED_CPUID = iowr(0x05, ctypes.sizeof(kvm_cpuid2))
KVM_CREATE_VCPU = io(0x41)
KVM_SET_USER_MEMORY_REGION = iow(0x46, ctypes.sizeof(kvm_userspace_memory_region))
KVM_SET_TSS_ADDR = io(0x47)
KVM_SET_IDENTITY_MAP_ADDR = iow(0x48, 8)
KVM_CREATE_IRQCHIP = io(0x60)
KVM_IRQ_LINE = iow(0x61, ctypes.sizeof(kvm_irq_level))
KVM_REGISTER_COALESCED_MMIO = iow(0x67, ctypes.sizeof(kvm_coalesced_mmio_zone))
KVM_SET_GSI_ROUTING = iow(0x6A, ctypes.sizeof(kvm_irq_routing))
KVM_IRQFD = iow(0x76, ctypes.sizeof(kvm_irqfd))
KVM_IOEVENTFD = iow(0x79, ctypes.sizeof(kvm_ioeventfd))
KVM_CREATE_PIT2 = iow(0x77, ctypes.sizeof(kvm_pit_config))
KVM_RUN = io(0x80)
KVM_GET_REGS = ior(0x81, ctypes.sizeof(kvm_regs))
KVM_SET_REGS = iow(0x82, ctypes.sizeof(kvm_regs))
KVM_GET_SREGS = ior(0x83, ctypes.sizeof(kvm_sregs))
KVM_SET_SREGS = iow(0x84, ctypes.sizeof(kvm_sregs))
KVM_SET_MSRS = iow(0x89, ctypes.sizeof(kvm_msrs))
KVM_SET_FPU = iow(0x8D, ctypes.sizeof(kvm_fpu))
KVM_GET_LAPIC = ior(0x8E, ctypes.sizeof(kvm_lapic_state))
KVM_SET_LAPIC = iow(0x8F, ctypes.sizeof(kvm_lapic_state))
KVM_SET_CPUID2 = iow(0x90, ctypes.sizeof(kvm_cpuid2))
KVM_ENABLE_CAP = iow(0xA3, ctypes.sizeof(kvm_enable_cap))
KVM_SIGNAL_MSI = iow(0xA5, MSI.size)
KVM_KVMCLOCK_CTRL = io(0xAD)
KVM_GET_STATS_FD = io(0xCE)

KVM_MEM_READONLY = 1 << 1
KVM_PIT_SPEAKER_DUMMY = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQFD_FLAG_DEASSIGN = 1 << 0
KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2

KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_SET_TSS_ADDR = 4
KVM_CAP_EXT_CPUID = 7
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_COALESCED_MMIO = 15
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQFD = 32
KVM_CAP_IOEVENTFD = 36
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_SET_IDENTITY_MAP_ADDR = 37
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_KVMCLOCK_CTRL = 76
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_READONLY_MEM = 81
KVM_CAP_SPLIT_IRQCHIP = 121
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_COALESCED_PIO = 162

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26

KVM_EXIT_IO_OUT = 1

# struct kvm_run, by offset: the vCPU thread reads these with struct.unpack_from, which is faster than a ctypes union.
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8  # u32
RUN_EXIT = 32  # the union of exit data

# struct kvm_coalesced_mmio_ring: first and last (u32 each), then entries of kvm_coalesced_mmio:
# phys_addr u64, len u32, pio u32, data[8].
COALESCED_HEAD_BYTES = 8
COALESCED_ENTRY_BYTES = 24
