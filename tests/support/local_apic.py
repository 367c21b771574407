"""A VM with a split irqchip, and one vCPU that never runs: its local APIC keeps each vector that has come."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.kvm.system import Kvm
from vmservice.kvm.vcpu import KvmVcpu
from vmservice.kvm.vm import KvmVm

# Registers of a local APIC (Intel SDM vol. 3, 11.4.1)
SPURIOUS, SOFTWARE_ENABLE = 0xF0, 0x1FF
REQUESTS = 0x200


class Processor:
    """`enabled` is whether the local APIC takes anything, as software has switched it on."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.kvm = Kvm()
        self.vm: KvmVm = self.kvm.create_vm()
        self.vm.enable_split_irqchip(layout.IOAPIC_PINS)
        self.vcpu: KvmVcpu = self.vm.create_vcpu(0)
        if enabled:
            self.enable()

    def enable(self) -> None:
        state = self.vcpu.lapic()
        state.regs[SPURIOUS : SPURIOUS + 2] = list(SOFTWARE_ENABLE.to_bytes(2, "little"))
        self.vcpu.set_lapic(state)

    def requests(self) -> list[int]:
        registers = bytes(self.vcpu.lapic().regs)
        words = [registers[REQUESTS + 16 * word : REQUESTS + 16 * word + 4] for word in range(8)]
        bits = int.from_bytes(b"".join(words), "little")
        return [vector for vector in range(256) if bits >> vector & 1]

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()
