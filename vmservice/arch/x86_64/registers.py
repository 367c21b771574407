"""The register state in which a vCPU meets a kernel, by the 64-bit boot protocol (Documentation/arch/x86/boot.rst) or by PVH
(Xen, docs/misc/pvh.pandoc)."""

from __future__ import annotations

import struct

from vmservice.arch.x86_64 import gdt, layout
from vmservice.arch.x86_64.msrs import BOOT_MSRS
from vmservice.kvm.abi import kvm_fpu, kvm_regs, kvm_segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.kvm.abi import kvm_sregs
    from vmservice.kvm.vcpu import KvmVcpu

_RFLAGS_RESERVED = 1 << 1

_CR0_PE = 1 << 0
_CR0_ET = 1 << 4  # always 1
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10

# What FNINIT and the reset of SSE leave (Intel SDM vol. 1, 8.1.5 and 10.2.3).
_FCW = 0x37F
_MXCSR = 0x1F80

# Local APIC registers (Intel SDM vol. 3, 11.5.1).
_LVT_LINT0 = 0x350
_LVT_LINT1 = 0x360
_DELIVERY_MODE = 0x7 << 8
_MASKED = 1 << 16
_MODE_NMI = 4 << 8
_MODE_EXTINT = 7 << 8


def set_long_mode_registers(vcpu: KvmVcpu, entry: int) -> None:
    """Long mode, the first GiB mapped, at `entry` (a gpa) with the zero page in RSI; for vCPU 0."""
    vcpu.set_regs(
        kvm_regs(
            rflags=_RFLAGS_RESERVED,
            rip=entry,
            rsp=layout.BOOT_STACK_POINTER,
            rbp=layout.BOOT_STACK_POINTER,
            rsi=layout.ZERO_PAGE,
        )
    )
    sregs = vcpu.sregs()
    _set_segments(sregs, gdt.LONG_MODE)
    # Not the reset's CD and NW, which switch caches off.
    sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_PG
    sregs.cr3 = layout.PML4
    sregs.cr4 |= _CR4_PAE
    sregs.efer |= _EFER_LME | _EFER_LMA
    vcpu.set_sregs(sregs)
    vcpu.set_fpu(kvm_fpu(fcw=_FCW, mxcsr=_MXCSR))


def set_pvh_registers(vcpu: KvmVcpu, entry: int) -> None:
    """32-bit protected mode without paging, at `entry` (a gpa) with the start info in RBX; for vCPU 0."""
    vcpu.set_regs(kvm_regs(rflags=_RFLAGS_RESERVED, rip=entry, rbx=layout.PVH_START_INFO))
    sregs = vcpu.sregs()
    _set_segments(sregs, gdt.PROTECTED_MODE)
    # "All the other writeable bits are cleared": the reset's CD and NW too.
    sregs.cr0 = _CR0_PE | _CR0_ET
    sregs.cr4 = 0
    vcpu.set_sregs(sregs)
    vcpu.set_fpu(kvm_fpu(fcw=_FCW, mxcsr=_MXCSR))


def set_boot_msrs(vcpu: KvmVcpu) -> None:
    vcpu.set_msrs(BOOT_MSRS)


def set_local_interrupts(vcpu: KvmVcpu) -> None:
    """LINT0 is the PIC's and LINT1 the NMI's, as the MP table says and a PC's firmware leaves them; LINT0 is masked.

    Nobody has programmed the PIC. KVM's, where it has one, is as at power-on: it would send the interrupt of COM1 as vector 4.
    A kernel that wants the PIC sets it up, and LINT0 with it.
    """
    lapic = vcpu.lapic()
    for register, mode in ((_LVT_LINT0, _MODE_EXTINT | _MASKED), (_LVT_LINT1, _MODE_NMI)):
        (value,) = struct.unpack_from("<I", lapic, register)
        struct.pack_into("<I", lapic, register, value & ~(_DELIVERY_MODE | _MASKED) | mode)
    vcpu.set_lapic(lapic)


def _set_segments(sregs: kvm_sregs, table: Sequence[int]) -> None:
    sregs.cs = _kvm_segment(table, gdt.CODE)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = _kvm_segment(table, gdt.DATA)
    sregs.tr = _kvm_segment(table, gdt.TSS)
    sregs.gdt.base, sregs.gdt.limit = layout.BOOT_GDT, gdt.GDT_LIMIT
    sregs.idt.base, sregs.idt.limit = layout.BOOT_IDT, gdt.IDT_LIMIT


def _kvm_segment(table: Sequence[int], index: int) -> kvm_segment:
    segment = gdt.segment(table, index)
    return kvm_segment(**{name: getattr(segment, name) for name in segment.__slots__})
