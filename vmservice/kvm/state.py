"""All that KVM holds of a guest, as plain values (dicts, lists, ints, text) that can be written as JSON and set into a new VM.

Structs are hexadecimal text in the host's byte order: nobody looks into them. Everything here is for vCPUs that do not run.

To take: hold all vCPUs, `complete_exit` each, take what gathered in the coalesced ring, then `get_vm` and each `get_vcpu`.
To set: a VM with its irqchip, memory and *all* vCPUs, then each `set_vcpu`, `set_vm`, the devices, and KVM_KVMCLOCK_CTRL for
each vCPU before any runs.
"""

from __future__ import annotations

import ctypes
import struct
import time

from vmservice.errors import HostError, KvmError
from vmservice.kvm import abi, abi_state, ioctl
from vmservice.kvm.vcpu import INTERRUPTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from vmservice.kvm.system import Kvm
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.kvm.vm import KvmVm

    # KVM's own, as JSON has it; each key is a name of this module's tables.
    State = dict[str, Any]

MSR_IA32_TSC = 0x10
MSR_IA32_FEATURE_CONTROL = 0x3A
MSR_IA32_TSC_DEADLINE = 0x6E0

# What no guest goes on without: SYSENTER, PAT, kvmclock, SYSCALL, the bases of FS, GS and its shadow, EFER, TSC_AUX. Of others
# the caller is told: a KVM may list some that it does not take.
_NEEDED_MSRS = frozenset(
    (0x174, 0x175, 0x176, 0x277, 0x4B564D00, 0x4B564D01, *range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000104))
)

# Local APIC (Intel SDM vol. 3, 11.5.4): the timer's mode is bits 18:17 of its entry, bit 16 the mask.
_LVT_TIMER = 0x320
_LVT_MASKED_AND_MODE = 7 << 16
_TSC_DEADLINE_MODE = 2 << 17

_IRQCHIPS = 3  # the PIC's two halves and the IOAPIC
_CPUID_ENTRIES = 256

# name, how it is taken and set, its bytes; each is there where KVM has its capability.
_PARTS: dict[str, tuple[int, int, int, int]] = {
    "mp_state": (abi_state.KVM_GET_MP_STATE, abi_state.KVM_SET_MP_STATE, 4, abi_state.KVM_CAP_MP_STATE),
    "regs": (abi.KVM_GET_REGS, abi.KVM_SET_REGS, ctypes.sizeof(abi.kvm_regs), 0),
    "sregs2": (abi_state.KVM_GET_SREGS2, abi_state.KVM_SET_SREGS2, abi_state.SREGS2_BYTES, abi_state.KVM_CAP_SREGS2),
    "sregs": (abi.KVM_GET_SREGS, abi.KVM_SET_SREGS, ctypes.sizeof(abi.kvm_sregs), 0),
    "fpu": (abi_state.KVM_GET_FPU, abi.KVM_SET_FPU, ctypes.sizeof(abi.kvm_fpu), 0),
    "xsave": (abi_state.KVM_GET_XSAVE, abi_state.KVM_SET_XSAVE, abi_state.XSAVE_BYTES, abi_state.KVM_CAP_XSAVE),
    "xcrs": (abi_state.KVM_GET_XCRS, abi_state.KVM_SET_XCRS, abi_state.XCRS_BYTES, abi_state.KVM_CAP_XCRS),
    "debugregs": (
        abi_state.KVM_GET_DEBUGREGS,
        abi_state.KVM_SET_DEBUGREGS,
        abi_state.DEBUGREGS_BYTES,
        abi_state.KVM_CAP_DEBUGREGS,
    ),
    "lapic": (abi.KVM_GET_LAPIC, abi.KVM_SET_LAPIC, ctypes.sizeof(abi.kvm_lapic_state), 0),
    "events": (
        abi_state.KVM_GET_VCPU_EVENTS,
        abi_state.KVM_SET_VCPU_EVENTS,
        ctypes.sizeof(abi_state.kvm_vcpu_events),
        abi_state.KVM_CAP_VCPU_EVENTS,
    ),
}


def complete_exit(vcpu: KvmVcpu, handle: Callable[[KvmVcpu, int], object]) -> None:
    """Finish what the vCPU's last exit began, without running the guest on; for a vCPU that its thread does not run.

    Until then RIP is still at an IN whose answer lies in the run page, and would be lost. A string instruction, or an access
    over the end of a page, makes further exits: `handle` does them as if the guest ran.
    """
    vcpu.set_immediate_exit(1)
    try:
        while (reason := vcpu.run()) != INTERRUPTED:
            handle(vcpu, reason)
    finally:
        vcpu.set_immediate_exit(0)


class KvmState:
    """Takes and sets the state of `vm` and its vCPUs, as far as `kvm` has it."""

    def __init__(self, kvm: Kvm, vm: KvmVm) -> None:
        self._vm = vm
        self._has = kvm.extension
        self._msrs = kvm.msr_indexes()
        # How large these are is a question to the VM: guests may be allowed more than the host's default.
        self._xsave_bytes = ioctl.raw(vm.fd, abi.KVM_CHECK_EXTENSION, abi_state.KVM_CAP_XSAVE2)
        self._nested_bytes = max(ioctl.raw(vm.fd, abi.KVM_CHECK_EXTENSION, abi_state.KVM_CAP_NESTED_STATE), 0)

    # One vCPU

    def get_vcpu(self, vcpu: KvmVcpu) -> State:
        """Changes nothing but what KVM had pending: the first question runs INIT and SIPI, and the rest is as of after that."""
        state: State = {}
        self._take(vcpu, state, "mp_state", "regs")
        self._take(vcpu, state, "sregs2" if self._has(abi_state.KVM_CAP_SREGS2) else "sregs")
        state |= self._get_extended(vcpu)
        self._take(vcpu, state, "xcrs", "debugregs", "lapic")
        if self._has(abi_state.KVM_CAP_GET_TSC_KHZ):
            state["tsc_khz"] = max(ioctl.raw(vcpu.fd, abi_state.KVM_GET_TSC_KHZ, 0), 0)
        state["cpuid"] = get_cpuid(vcpu).hex()
        msrs = get_msrs(vcpu, self._msrs)
        _keep_tick(msrs, bytes.fromhex(state["lapic"]))
        state["msrs"] = msrs
        state["tsc_offset"] = self._get_tsc_offset(vcpu)
        if self._nested_bytes:
            state["nested"] = self._get_nested(vcpu)
        self._take(vcpu, state, "events")
        return state

    def set_vcpu(self, vcpu: KvmVcpu, state: State) -> list[int]:
        """Into a vCPU that has not run yet; the MSRs that KVM did not take, though they held something.

        KvmError where it is something that no guest goes on without, or a `state` of another kind of host.
        """
        khz = state.get("tsc_khz")
        if khz and ioctl.raw(vcpu.fd, abi_state.KVM_GET_TSC_KHZ, 0) != khz:
            ioctl.call(vcpu.fd, abi_state.KVM_SET_TSC_KHZ, khz, name="KVM_SET_TSC_KHZ")
        vcpu.set_cpuid(bytes.fromhex(state["cpuid"]))
        msrs = [(index, value) for index, value in state["msrs"]]
        self._give(vcpu, state, "mp_state", "sregs2", "sregs")
        # VMX: nested state is only taken once the guest may use it.
        set_msrs(vcpu, [(index, value) for index, value in msrs if index == MSR_IA32_FEATURE_CONTROL])
        if state.get("nested"):
            _give_bytes(vcpu, abi_state.KVM_SET_NESTED_STATE, bytes.fromhex(state["nested"]), "KVM_SET_NESTED_STATE")
        self._give(vcpu, state, "regs", "xcrs", "fpu", "xsave", "debugregs")
        refused = self._set_tsc(vcpu, state, msrs)
        self._give(vcpu, state, "lapic")
        # The deadline last: KVM drops it while the local APIC's timer is in another mode, and compares it with the TSC.
        late = [(index, value) for index, value in msrs if index == MSR_IA32_TSC_DEADLINE]
        rest = [(index, value) for index, value in msrs if index not in (MSR_IA32_TSC, MSR_IA32_TSC_DEADLINE)]
        refused += set_msrs(vcpu, rest) + set_msrs(vcpu, late)
        self._give(vcpu, state, "events")
        held = dict(msrs)
        if needed := [index for index in refused if index in _NEEDED_MSRS]:
            raise KvmError(f"KVM does not take MSR {needed[0]:#x} of vCPU {vcpu.index} back, which its guest needs")
        return [index for index in refused if held[index]]

    # The VM

    def get_vm(self) -> State:
        """Its clock, and the interrupt controllers and timer that are in the kernel, where they are."""
        clock = abi_state.kvm_clock_data()
        state: State = {"clock": None, "irqchips": [], "pit": None}
        if self._has(abi_state.KVM_CAP_ADJUST_CLOCK):
            ioctl.call(self._vm.fd, abi_state.KVM_GET_CLOCK, clock, name="KVM_GET_CLOCK")
            state["clock"] = {
                "ns": clock.clock,
                "flags": clock.flags,
                "realtime_ns": clock.realtime,
                "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            }
        for chip in range(_IRQCHIPS):
            buffer = ctypes.create_string_buffer(struct.pack("<I", chip), abi_state.IRQCHIP_BYTES)
            # ENXIO with a split irqchip: the IOAPIC is ours, and there is no PIC.
            if ioctl.raw(self._vm.fd, abi_state.KVM_GET_IRQCHIP, ctypes.addressof(buffer)) == 0:
                state["irqchips"].append(buffer.raw.hex())
        pit = ctypes.create_string_buffer(abi_state.PIT_STATE2_BYTES)
        if ioctl.raw(self._vm.fd, abi_state.KVM_GET_PIT2, ctypes.addressof(pit)) == 0:
            state["pit"] = pit.raw.hex()
        return state

    def set_vm(self, state: State) -> None:
        """Once every vCPU has its state: the clock follows their TSCs. It goes on as if it had never stood still."""
        for chip in state["irqchips"]:
            _vm_bytes(self._vm, abi_state.KVM_SET_IRQCHIP, bytes.fromhex(chip), "KVM_SET_IRQCHIP")
        if state["pit"]:
            _vm_bytes(self._vm, abi_state.KVM_SET_PIT2, bytes.fromhex(state["pit"]), "KVM_SET_PIT2")
        saved = state["clock"]
        if saved:
            clock = abi_state.kvm_clock_data(clock=saved["ns"])
            if saved["flags"] & self._has(abi_state.KVM_CAP_ADJUST_CLOCK) & abi_state.KVM_CLOCK_REALTIME:
                clock.flags, clock.realtime = abi_state.KVM_CLOCK_REALTIME, saved["realtime_ns"]
            else:  # the host's clock is not its TSC, so KVM cannot tell how long it stood still
                clock.clock += max(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - saved["boottime_ns"], 0)
            ioctl.call(self._vm.fd, abi_state.KVM_SET_CLOCK, clock, name="KVM_SET_CLOCK")

    # Parts of a vCPU

    def _take(self, vcpu: KvmVcpu, state: State, *names: str) -> None:
        for name in names:
            get, _, size_bytes, capability = _PARTS[name]
            if not capability or self._has(capability):
                state[name] = _take_bytes(vcpu, get, size_bytes, f"taking {name}")

    def _give(self, vcpu: KvmVcpu, state: State, *names: str) -> None:
        """Each of `names` that `state` has."""
        for name in names:
            if name not in state:
                continue
            _, request, size_bytes, _ = _PARTS[name]
            data = bytes.fromhex(state[name])
            if len(data) < size_bytes or (len(data) > size_bytes and name != "xsave"):
                raise KvmError(f"{name} of vCPU {vcpu.index} is saved as {len(data)} bytes, and KVM's struct has {size_bytes}")
            _give_bytes(vcpu, request, data, f"setting {name}")

    def _get_extended(self, vcpu: KvmVcpu) -> State:
        """Floating point, SSE, AVX and on."""
        if self._xsave_bytes > 0 and self._has(abi_state.KVM_CAP_XSAVE2):
            size_bytes = max(self._xsave_bytes, abi_state.XSAVE_BYTES)
            return {"xsave": _take_bytes(vcpu, abi_state.KVM_GET_XSAVE2, size_bytes, "KVM_GET_XSAVE2")}
        name = "xsave" if self._has(abi_state.KVM_CAP_XSAVE) else "fpu"
        state: State = {}
        self._take(vcpu, state, name)
        return state

    def _get_nested(self, vcpu: KvmVcpu) -> str:
        buffer = ctypes.create_string_buffer(self._nested_bytes)
        struct.pack_into("<I", buffer, 4, self._nested_bytes)  # struct kvm_nested_state: flags, format (u16 each), size
        ioctl.call(vcpu.fd, abi_state.KVM_GET_NESTED_STATE, buffer, name="KVM_GET_NESTED_STATE")
        (used,) = struct.unpack_from("<I", buffer, 4)
        return buffer.raw[:used].hex()

    def _get_tsc_offset(self, vcpu: KvmVcpu) -> int | None:
        """The guest's TSC less the host's, modulo 2^64; None where KVM does not tell."""
        value = ctypes.c_uint64()
        attribute = _tsc_offset(value)
        if not self._has(abi_state.KVM_CAP_VCPU_ATTRIBUTES):
            return None
        result = ioctl.raw(vcpu.fd, abi_state.KVM_GET_DEVICE_ATTR, ctypes.addressof(attribute))
        return value.value if result == 0 else None

    def _set_tsc(self, vcpu: KvmVcpu, state: State, msrs: list[tuple[int, int]]) -> list[int]:
        """With the offset the guest's TSC goes on as if it had never stood still; else from where it was."""
        if state["tsc_offset"] is None:
            return set_msrs(vcpu, [(index, value) for index, value in msrs if index == MSR_IA32_TSC])
        value = ctypes.c_uint64(state["tsc_offset"])
        ioctl.call(vcpu.fd, abi_state.KVM_SET_DEVICE_ATTR, _tsc_offset(value), name="KVM_SET_DEVICE_ATTR(TSC offset)")
        return []


def get_msrs(vcpu: KvmVcpu, indexes: list[int]) -> list[list[int]]:
    """[index, value] of each of them that KVM tells."""
    found: list[list[int]] = []
    while indexes:
        buffer, entries = _msr_buffer(len(indexes))
        for entry, index in zip(entries, indexes, strict=True):
            entry.index = index
        told = ioctl.call(vcpu.fd, abi_state.KVM_GET_MSRS, buffer, name="KVM_GET_MSRS")
        found += [[entry.index, entry.data] for entry in entries[:told]]
        indexes = indexes[told + 1 :]  # the one at which KVM stopped it does not know
    return found


def set_msrs(vcpu: KvmVcpu, msrs: list[tuple[int, int]]) -> list[int]:
    """(index, value) pairs; the indexes of those that KVM did not take."""
    refused: list[int] = []
    while msrs:
        buffer, entries = _msr_buffer(len(msrs))
        for entry, (index, value) in zip(entries, msrs, strict=True):
            entry.index, entry.data = index, value
        taken = ioctl.call(vcpu.fd, abi.KVM_SET_MSRS, buffer, name="KVM_SET_MSRS")
        refused += [index for index, _ in msrs[taken : taken + 1]]
        msrs = msrs[taken + 1 :]
    return refused


def get_cpuid(vcpu: KvmVcpu) -> bytes:
    """What this vCPU has, as consecutive struct kvm_cpuid_entry2: the host may offer something else by now."""
    head_bytes = ctypes.sizeof(abi.kvm_cpuid2)
    buffer = ctypes.create_string_buffer(head_bytes + _CPUID_ENTRIES * abi.CPUID_ENTRY.size)
    head = abi.kvm_cpuid2.from_buffer(buffer)
    head.nent = _CPUID_ENTRIES
    ioctl.call(vcpu.fd, abi_state.KVM_GET_CPUID2, buffer, name="KVM_GET_CPUID2")
    return buffer.raw[head_bytes : head_bytes + head.nent * abi.CPUID_ENTRY.size]


def _keep_tick(msrs: list[list[int]], lapic: bytes) -> None:
    """A deadline that has passed is 0 before its interrupt is anywhere to be seen: let it pass anew, or the timer stops.

    One interrupt too many, where there was none on its way, does no harm.
    """
    (timer,) = struct.unpack_from("<I", lapic, _LVT_TIMER)
    values = {index: value for index, value in msrs}  # noqa: C416  # pairs that are lists, as JSON has them
    if timer & _LVT_MASKED_AND_MODE == _TSC_DEADLINE_MODE and values.get(MSR_IA32_TSC_DEADLINE) == 0:
        for pair in msrs:
            if pair[0] == MSR_IA32_TSC_DEADLINE:
                pair[1] = values[MSR_IA32_TSC]


def _msr_buffer(count: int) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[abi.kvm_msr_entry]]:
    head_bytes = ctypes.sizeof(abi.kvm_msrs)
    buffer = ctypes.create_string_buffer(head_bytes + count * ctypes.sizeof(abi.kvm_msr_entry))
    abi.kvm_msrs.from_buffer(buffer).nmsrs = count
    return buffer, (abi.kvm_msr_entry * count).from_buffer(buffer, head_bytes)


def _tsc_offset(value: ctypes.c_uint64) -> abi_state.kvm_device_attr:
    return abi_state.kvm_device_attr(
        group=abi_state.KVM_VCPU_TSC_CTRL, attr=abi_state.KVM_VCPU_TSC_OFFSET, addr=ctypes.addressof(value)
    )


def _take_bytes(vcpu: KvmVcpu, request: int, size_bytes: int, name: str) -> str:
    buffer = ctypes.create_string_buffer(size_bytes)
    ioctl.call(vcpu.fd, request, buffer, name=name)
    return buffer.raw.hex()


def _give_bytes(vcpu: KvmVcpu, request: int, data: bytes, name: str) -> None:
    try:
        ioctl.call(vcpu.fd, request, ctypes.create_string_buffer(data, len(data)), name=name)
    except HostError as error:
        raise KvmError(f"vCPU {vcpu.index}: {error}", error.errno) from error


def _vm_bytes(vm: KvmVm, request: int, data: bytes, name: str) -> None:
    ioctl.call(vm.fd, request, ctypes.create_string_buffer(data, len(data)), name=name)
