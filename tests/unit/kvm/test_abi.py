"""The kernel's ABI as we spell it: sizes and numbers from <linux/kvm.h>, worked out by hand and by a C compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from vmservice.kvm import abi, abi_state

# From strace's tables and the kernel's documentation: an ioctl number holds its direction, the size of its struct, and 0xae.
NUMBERS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_TSS_ADDR": 0xAE47,
    "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_IRQ_LINE": 0x4008AE61,
    "KVM_REGISTER_COALESCED_MMIO": 0x4010AE67,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_CREATE_PIT2": 0x4040AE77,
    "KVM_RUN": 0xAE80,
    "KVM_GET_REGS": 0x8090AE81,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_SET_FPU": 0x41A0AE8D,
    "KVM_GET_LAPIC": 0x8400AE8E,
    "KVM_SET_LAPIC": 0x4400AE8F,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_GET_IRQCHIP": 0xC208AE62,
    "KVM_SET_IRQCHIP": 0x8208AE63,
    "KVM_SET_CLOCK": 0x4030AE7B,
    "KVM_GET_CLOCK": 0x8030AE7C,
    "KVM_TRANSLATE": 0xC018AE85,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_GET_FPU": 0x81A0AE8C,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_GET_PIT2": 0x8070AE9F,
    "KVM_SET_PIT2": 0x4070AEA0,
    "KVM_GET_DEBUGREGS": 0x8080AEA1,
    "KVM_SET_DEBUGREGS": 0x4080AEA2,
    "KVM_SET_TSC_KHZ": 0xAEA2,
    "KVM_GET_TSC_KHZ": 0xAEA3,
    "KVM_GET_XSAVE": 0x9000AEA4,
    "KVM_SET_XSAVE": 0x5000AEA5,
    "KVM_GET_XCRS": 0x8188AEA6,
    "KVM_SET_XCRS": 0x4188AEA7,
    "KVM_GET_NESTED_STATE": 0xC080AEBE,
    "KVM_SET_NESTED_STATE": 0x4080AEBF,
    "KVM_GET_SREGS2": 0x8140AECC,
    "KVM_SET_SREGS2": 0x4140AECD,
    "KVM_GET_XSAVE2": 0x9000AECF,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
    "KVM_HAS_DEVICE_ATTR": 0x4018AEE3,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_KVMCLOCK_CTRL": 0xAEAD,
    "KVM_GET_STATS_FD": 0xAECE,
}
ALL = vars(abi) | vars(abi_state)
STRUCTS = [name for name in ALL if name.startswith("kvm_")]


@pytest.mark.parametrize("name", NUMBERS)
def test_ioctl_number(name: str) -> None:
    assert ALL[name] == NUMBERS[name]


def test_entries_of_variable_structs_have_the_kernels_size() -> None:
    assert ctypes.sizeof(abi.kvm_msr_entry) == 16
    assert abi.CPUID_ENTRY.size == 40
    assert abi.MSI.size == 32
    assert ctypes.sizeof(abi.kvm_irq_routing_entry) == 48


def test_everything_equals_the_header_of_this_machine(tmp_path: Path) -> None:
    """Numbers, capabilities, exits and struct sizes, as the C compiler sees them."""
    if shutil.which("gcc") is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no C compiler or no <linux/kvm.h> here")
    names = [name for name in ALL if name.startswith("KVM_")]
    lines = [f'printf("{name} %lu\\n", (unsigned long) {name});' for name in names]
    lines += [f'printf("{name} %lu\\n", (unsigned long) sizeof(struct {name}));' for name in STRUCTS]
    offsets = [("immediate_exit", abi.RUN_IMMEDIATE_EXIT), ("exit_reason", abi.RUN_EXIT_REASON), ("io", abi.RUN_EXIT)]
    lines += [f'printf("{field} %lu\\n", (unsigned long) offsetof(struct kvm_run, {field}));' for field, _ in offsets]
    source = tmp_path / "abi.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {\n" + "\n".join(lines) + "\n}\n"
    )
    subprocess.run(["gcc", "-o", tmp_path / "abi", source], check=True, timeout=60)
    output = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True, timeout=60).stdout
    header = {name: int(value) for name, value in (line.split() for line in output.splitlines())}
    ours = {name: ALL[name] for name in names}
    ours |= {name: ctypes.sizeof(ALL[name]) for name in STRUCTS}
    assert header == ours | dict(offsets)
