"""A vCPU in words, for a person who wants to know where its guest is: registers, interrupts, time, and the code at RIP."""

from __future__ import annotations

import ctypes
import struct

from vmservice.errors import KvmError, VmmError
from vmservice.kvm import abi_state, ioctl
from vmservice.kvm.state import MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE, get_msrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.kvm.abi import kvm_sregs
    from vmservice.kvm.vcpu import KvmVcpu

    # Guest memory at a gpa, that many bytes; VmmError where there is none.
    Read = Callable[[int, int], bytes]

# How much of the code is shown, before RIP and from there on.
_BYTES_BEFORE = 16
_BYTES_FROM = 48
_PAGE = 4096

_RESET_VECTOR = 0xFFFFFFF0

_EFER_LMA = 1 << 10
_APIC_BASE_X2APIC = 1 << 10
_APIC_BASE_ENABLE = 1 << 11

# Local APIC registers (Intel SDM vol. 3, 11.4.1) and bits of them.
_ID, _TASK_PRIORITY, _SPURIOUS = 0x20, 0x80, 0xF0
_IN_SERVICE, _TRIGGER_MODE, _REQUESTS = 0x100, 0x180, 0x200
_LVT_TIMER, _TIMER_INITIAL, _TIMER_CURRENT, _TIMER_DIVIDE = 0x320, 0x380, 0x390, 0x3E0
_SOFTWARE_ENABLE = 1 << 8
_LVT_MASKED = 1 << 16
_TIMER_MODES = ("one-shot", "periodic", "TSC deadline", "reserved")

_MP_STATES = {
    abi_state.KVM_MP_STATE_RUNNABLE: "runs",
    abi_state.KVM_MP_STATE_UNINITIALIZED: "waits for INIT",
    abi_state.KVM_MP_STATE_INIT_RECEIVED: "waits for SIPI",
    abi_state.KVM_MP_STATE_HALTED: "halted",
    abi_state.KVM_MP_STATE_SIPI_RECEIVED: "has SIPI",
}


def describe(vcpu: KvmVcpu, read: Read | None = None) -> list[str]:
    """A line or more of each kind, for a vCPU whose thread holds: of one that runs nothing is told before its next exit.

    What KVM refuses to tell is said so in its place. The code is that of the guest's memory, by way of `read`.
    """
    lines: list[str] = []
    for part in (_registers, _control_registers, _pending, _local_apic, _time):
        try:
            lines += part(vcpu)
        except KvmError as error:
            lines.append(str(error))
    if read is not None:
        lines.append(_code(vcpu, read))
    return [f"vCPU {vcpu.index}: {line}" for line in lines]


def where(vcpu: KvmVcpu) -> str:
    """Where a vCPU stands that a triple fault has stopped: a clause. For its own thread, outside KVM_RUN."""
    try:
        regs, sregs = vcpu.regs(), vcpu.sregs()
    except KvmError as error:
        return f"at a place that KVM does not tell: {error}"
    if (sregs.cs.base + regs.rip, regs.rsp, sregs.cr3) == (_RESET_VECTOR, 0, 0):
        # Of what made it, AMD's processors leave nothing that is defined, so KVM resets the vCPU (APM vol. 2, 15.14.3).
        return "at a place that KVM does not tell on this host, which has reset it"
    return f"at RIP {regs.rip:#x}, CS base {sregs.cs.base:#x}, CR0 {sregs.cr0:#x}, CR3 {sregs.cr3:#x}, CR2 {sregs.cr2:#x}"


def _registers(vcpu: KvmVcpu) -> list[str]:
    regs, sregs = vcpu.regs(), vcpu.sregs()
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{number}" for number in range(8, 16)))
    return [
        f"RIP {regs.rip:#x}, {_mode(sregs)}, ring {sregs.cs.selector & 3}, CS {sregs.cs.selector:#x} base {sregs.cs.base:#x},"
        f" RSP {regs.rsp:#x}, RFLAGS {regs.rflags:#x}{'' if regs.rflags & 1 << 9 else ' (interrupts off)'}",
        ", ".join(f"{name.upper()} {getattr(regs, name):#x}" for name in names),
    ]


def _mode(sregs: kvm_sregs) -> str:
    if not sregs.cr0 & 1:
        return "real mode"
    if sregs.efer & _EFER_LMA and sregs.cs.l:
        return "64-bit"
    return "32-bit" if sregs.cs.db else "16-bit protected mode"


def _control_registers(vcpu: KvmVcpu) -> list[str]:
    sregs = vcpu.sregs()
    return [", ".join(f"{name.upper()} {getattr(sregs, name):#x}" for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"))]


def _pending(vcpu: KvmVcpu) -> list[str]:
    state = ctypes.c_uint32()
    _ask(vcpu, abi_state.KVM_GET_MP_STATE, state, "KVM_GET_MP_STATE")
    events = abi_state.kvm_vcpu_events()
    _ask(vcpu, abi_state.KVM_GET_VCPU_EVENTS, events, "KVM_GET_VCPU_EVENTS")
    what = [
        (events.exception_injected or events.exception_pending, f"exception {events.exception_nr}"),
        (events.interrupt_injected, f"interrupt {events.interrupt_nr:#x}"),
        (events.interrupt_shadow, "interrupt shadow"),
        (events.nmi_injected or events.nmi_pending, "NMI"),
        (events.nmi_masked, "NMIs masked"),
        (events.smi_smm, "in SMM"),
        (events.smi_pending, "SMI"),
        (events.triple_fault_pending, "triple fault"),
    ]
    pending = ", ".join(text for is_so, text in what if is_so) or "nothing"
    return [f"{_MP_STATES.get(state.value, f'MP state {state.value}')}; pending: {pending}"]


def _local_apic(vcpu: KvmVcpu) -> list[str]:
    lapic, base = bytes(vcpu.lapic()), vcpu.sregs().apic_base
    mode, identity = ("x2APIC", _word(lapic, _ID)) if base & _APIC_BASE_X2APIC else ("xAPIC", _word(lapic, _ID) >> 24)
    is_on = base & _APIC_BASE_ENABLE and _word(lapic, _SPURIOUS) & _SOFTWARE_ENABLE
    timer = _word(lapic, _LVT_TIMER)
    return [
        f"local APIC {identity} ({mode}, {'on' if is_on else 'off'}), TPR {_word(lapic, _TASK_PRIORITY):#x};"
        f" serves {_vectors(lapic, _IN_SERVICE)}, waiting {_vectors(lapic, _REQUESTS)}, level {_vectors(lapic, _TRIGGER_MODE)}",
        f"timer {_TIMER_MODES[timer >> 17 & 3]}, vector {timer & 0xFF:#x}{', masked' if timer & _LVT_MASKED else ''},"
        f" initial {_word(lapic, _TIMER_INITIAL):#x}, current {_word(lapic, _TIMER_CURRENT):#x},"
        f" divide {_word(lapic, _TIMER_DIVIDE):#x}",
    ]


def _time(vcpu: KvmVcpu) -> list[str]:
    values = {index: value for index, value in get_msrs(vcpu, [MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE])}  # noqa: C416
    tsc, deadline = values.get(MSR_IA32_TSC, 0), values.get(MSR_IA32_TSC_DEADLINE, 0)
    khz = ioctl.raw(vcpu.fd, abi_state.KVM_GET_TSC_KHZ, 0)
    if not deadline:
        until = "none"
    elif khz > 0:
        until = f"{deadline:#x}, {'in' if deadline > tsc else 'since'} {abs(deadline - tsc) / khz:.3f} ms"
    else:
        until = f"{deadline:#x}"
    return [f"TSC {tsc:#x}, {khz if khz > 0 else '?'} kHz; deadline {until}"]


def _code(vcpu: KvmVcpu, read: Read) -> str:
    """As Linux prints it, so that its scripts/decodecode takes it: the byte at RIP in angle brackets."""
    regs, sregs = vcpu.regs(), vcpu.sregs()
    address = regs.rip if _mode(sregs) == "64-bit" else sregs.cs.base + regs.rip & 0xFFFFFFFF
    before = _linear(vcpu, read, max(address - _BYTES_BEFORE, 0), min(address, _BYTES_BEFORE))
    following = _linear(vcpu, read, address, _BYTES_FROM)
    if not following:
        return f"no memory at RIP (linear address {address:#x})"
    if len(before) < min(address, _BYTES_BEFORE):
        before = b""  # what there is of it ends elsewhere
    return f"Code: {f'{before.hex(chr(32))} ' if before else ''}<{following[:1].hex()}> {following[1:].hex(' ')}"


def _linear(vcpu: KvmVcpu, read: Read, address: int, size_bytes: int) -> bytes:
    """What the vCPU finds at a linear address, up to where its page tables or its memory end."""
    data = b""
    while len(data) < size_bytes:
        here = address + len(data)
        translation = abi_state.kvm_translation(linear_address=here)
        size = min(size_bytes - len(data), _PAGE - here % _PAGE)
        try:
            _ask(vcpu, abi_state.KVM_TRANSLATE, translation, "KVM_TRANSLATE")
            if not translation.valid:
                return data
            data += read(translation.physical_address, size)
        except VmmError:
            return data
    return data


def _ask(vcpu: KvmVcpu, request: int, answer: ctypes.Structure | ctypes.c_uint32, name: str) -> None:
    result = ioctl.raw(vcpu.fd, request, ctypes.addressof(answer))
    if result < 0:
        raise KvmError.from_os(f"{name} failed", OSError(-result, ""))


def _word(lapic: bytes, register: int) -> int:
    value: int = struct.unpack_from("<I", lapic, register)[0]
    return value


def _vectors(lapic: bytes, register: int) -> str:
    """The vectors whose bits are set in eight registers, the highest, which comes first, in front."""
    bits = 0
    for word in range(8):
        bits |= _word(lapic, register + 16 * word) << 32 * word
    return " ".join(f"{vector:#x}" for vector in range(255, -1, -1) if bits >> vector & 1) or "nothing"
