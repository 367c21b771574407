"""Where a vCPU stands after a triple fault, on hosts that leave its registers and on those that do not."""

from __future__ import annotations

from types import SimpleNamespace

from vmservice.errors import KvmError
from vmservice.kvm import abi
from vmservice.kvm.describe import where


def vcpu(rip: int, cs_base: int, **control: int) -> SimpleNamespace:
    sregs = abi.kvm_sregs(**control)
    sregs.cs.base = cs_base
    return SimpleNamespace(index=0, regs=lambda: abi.kvm_regs(rip=rip), sregs=lambda: sregs)


def test_the_place_of_the_fault() -> None:
    found = where(vcpu(0xFFFFFFFF81000000, 0, cr0=0x80050033, cr2=8, cr3=0x1000))  # type: ignore[arg-type]
    assert found == "at RIP 0xffffffff81000000, CS base 0x0, CR0 0x80050033, CR3 0x1000, CR2 0x8"


def test_a_vcpu_that_kvm_has_reset_is_nowhere() -> None:
    """KVM on AMD (svm.c, shutdown_interception): what the processor leaves is undefined."""
    assert "KVM does not tell" in where(vcpu(0xFFF0, 0xFFFF0000, cr0=0x60000010))  # type: ignore[arg-type]


def test_a_kvm_that_tells_nothing() -> None:
    def refuse() -> abi.kvm_regs:
        raise KvmError("KVM_GET_REGS failed: Input/output error (errno 5)")

    told = where(SimpleNamespace(index=0, regs=refuse))  # type: ignore[arg-type]
    assert told.endswith("KVM_GET_REGS failed: Input/output error (errno 5)")
