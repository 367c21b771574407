"""The smallest guest there is, as Cloud Hypervisor's `test_vm` has it: proof that this host's KVM runs guest code."""

from __future__ import annotations

import mmap

from vmservice.errors import HostError, quoted
from vmservice.kvm import abi, exits
from vmservice.kvm.vcpu import INTERRUPTED
from vmservice.kvm.vm import KvmVm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.kvm.system import Kvm

EXPECTED = b"5\n"

_LOAD_ADDRESS = 0x1000
_PORT = 0x3F8
_CODE = bytes.fromhex(
    "ba f8 03"  # mov dx, 0x3f8
    "00 d8"  # add al, bl
    "04 30"  # add al, '0'
    "ee"  # out dx, al
    "b0 0a"  # mov al, '\n'
    "ee"  # out dx, al
    "f4"  # hlt
)
# Four exits are due; a KVM that does not get there must not keep us.
_MAX_EXITS = 100


def run_test_vm(kvm: Kvm) -> bytes:
    """Run 2 + 3 in real mode and return what the guest wrote to its port: `EXPECTED` where KVM works. HostError otherwise."""
    vm = kvm.create_vm()
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[: len(_CODE)] = _CODE
            vm.memory.add(_LOAD_ADDRESS, memory)
            try:
                return _run(vm)
            finally:
                vm.close()
    finally:
        vm.close()


def shown(output: bytes) -> str:
    """What the guest has written, as a person reads it."""
    return quoted(output.decode("latin-1"))


def _run(vm: KvmVm) -> bytes:
    vcpu = vm.create_vcpu(0)
    try:
        sregs = vcpu.sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        vcpu.set_regs(abi.kvm_regs(rip=_LOAD_ADDRESS, rax=2, rbx=3, rflags=2))
        output = b""
        for _ in range(_MAX_EXITS):
            reason = vcpu.run()
            if reason == abi.KVM_EXIT_HLT:
                return output
            if reason == abi.KVM_EXIT_IO:
                direction, size, port, count, offset = exits.IO.unpack_from(vcpu.page, abi.RUN_EXIT)
                if direction == abi.KVM_EXIT_IO_OUT and port == _PORT:
                    output += vcpu.page[offset : offset + size * count]
            elif reason != INTERRUPTED:
                raise HostError(f"the test guest failed: {exits.describe(reason, vcpu.page)}")
        raise HostError(f"the test guest did not halt within {_MAX_EXITS} exits; it wrote {shown(output)}")
    finally:
        vcpu.close()
