"""The part of <linux/kvm.h> and <asm/kvm.h> (x86) that takes and sets a guest's state, under the headers' own names.

Apart from `abi`, which every start imports: a struct of ctypes takes its time to be made.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint32, c_uint64

from vmservice.kvm import abi
from vmservice.kvm.ioctl import io, ior, iow, iowr


class kvm_translation(ctypes.Structure):
    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class kvm_clock_data(ctypes.Structure):
    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )


class kvm_device_attr(ctypes.Structure):
    _fields_ = (("flags", c_uint32), ("group", c_uint32), ("attr", c_uint64), ("addr", c_uint64))


class kvm_vcpu_events(ctypes.Structure):
    """The nested structs spelt out, from `exception` to `triple_fault`."""

    _fields_ = (
        ("exception_injected", c_uint8),
        ("exception_nr", c_uint8),
        ("exception_has_error_code", c_uint8),
        ("exception_pending", c_uint8),
        ("exception_error_code", c_uint32),
        ("interrupt_injected", c_uint8),
        ("interrupt_nr", c_uint8),
        ("interrupt_soft", c_uint8),
        ("interrupt_shadow", c_uint8),
        ("nmi_injected", c_uint8),
        ("nmi_pending", c_uint8),
        ("nmi_masked", c_uint8),
        ("nmi_pad", c_uint8),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi_smm", c_uint8),
        ("smi_pending", c_uint8),
        ("smi_smm_inside_nmi", c_uint8),
        ("smi_latched_init", c_uint8),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


# Structs that nobody looks into: they are taken and given back as they are.
SREGS2_BYTES = 320
XSAVE_BYTES = 4096
XCRS_BYTES = 392
DEBUGREGS_BYTES = 128
NESTED_HEAD_BYTES = 128
IRQCHIP_BYTES = 520
PIT_STATE2_BYTES = 112

KVM_GET_MSR_INDEX_LIST = iowr(0x02, 4)
KVM_GET_IRQCHIP = iowr(0x62, IRQCHIP_BYTES)
KVM_SET_IRQCHIP = ior(0x63, IRQCHIP_BYTES)  # so the header has it, though it is the kernel that reads
KVM_SET_CLOCK = iow(0x7B, ctypes.sizeof(kvm_clock_data))
KVM_GET_CLOCK = ior(0x7C, ctypes.sizeof(kvm_clock_data))
KVM_TRANSLATE = iowr(0x85, ctypes.sizeof(kvm_translation))
KVM_GET_MSRS = iowr(0x88, ctypes.sizeof(abi.kvm_msrs))
KVM_GET_FPU = ior(0x8C, ctypes.sizeof(abi.kvm_fpu))
KVM_GET_CPUID2 = iowr(0x91, ctypes.sizeof(abi.kvm_cpuid2))
KVM_GET_MP_STATE = ior(0x98, 4)
KVM_SET_MP_STATE = iow(0x99, 4)
KVM_GET_VCPU_EVENTS = ior(0x9F, ctypes.sizeof(kvm_vcpu_events))
KVM_SET_VCPU_EVENTS = iow(0xA0, ctypes.sizeof(kvm_vcpu_events))
KVM_GET_PIT2 = ior(0x9F, PIT_STATE2_BYTES)
KVM_SET_PIT2 = iow(0xA0, PIT_STATE2_BYTES)
KVM_GET_DEBUGREGS = ior(0xA1, DEBUGREGS_BYTES)
KVM_SET_DEBUGREGS = iow(0xA2, DEBUGREGS_BYTES)
KVM_SET_TSC_KHZ = io(0xA2)
KVM_GET_TSC_KHZ = io(0xA3)
KVM_GET_XSAVE = ior(0xA4, XSAVE_BYTES)
KVM_SET_XSAVE = iow(0xA5, XSAVE_BYTES)
KVM_GET_XCRS = ior(0xA6, XCRS_BYTES)
KVM_SET_XCRS = iow(0xA7, XCRS_BYTES)
KVM_GET_NESTED_STATE = iowr(0xBE, NESTED_HEAD_BYTES)
KVM_SET_NESTED_STATE = iow(0xBF, NESTED_HEAD_BYTES)
KVM_GET_SREGS2 = ior(0xCC, SREGS2_BYTES)
KVM_SET_SREGS2 = iow(0xCD, SREGS2_BYTES)
KVM_GET_XSAVE2 = ior(0xCF, XSAVE_BYTES)
KVM_SET_DEVICE_ATTR = iow(0xE1, ctypes.sizeof(kvm_device_attr))
KVM_GET_DEVICE_ATTR = iow(0xE2, ctypes.sizeof(kvm_device_attr))
KVM_HAS_DEVICE_ATTR = iow(0xE3, ctypes.sizeof(kvm_device_attr))

KVM_CAP_MP_STATE = 14
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_VCPU_ATTRIBUTES = 127
KVM_CAP_NESTED_STATE = 157
KVM_CAP_SREGS2 = 200
KVM_CAP_XSAVE2 = 208

KVM_CLOCK_REALTIME = 1 << 2
KVM_VCPU_TSC_CTRL = 0
KVM_VCPU_TSC_OFFSET = 0

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
