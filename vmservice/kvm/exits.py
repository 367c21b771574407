"""What a VM exit says: decoding of the exit data in kvm_run (<linux/kvm.h>, struct kvm_run)."""

from __future__ import annotations

import struct

from vmservice.kvm import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

# io: direction u8, size u8, port u16, count u32, data_offset u64
IO = struct.Struct("<BBHIQ")
# mmio: phys_addr u64, data[8], len u32, is_write u8
MMIO = struct.Struct("<Q8sIB")
MMIO_DATA = abi.RUN_EXIT + 8

_INTERNAL_ERRORS = {
    1: "an instruction that KVM cannot emulate",
    2: "an exception met while another was delivered",
    3: "a delivery that failed",
    4: "an exit that KVM does not know",
}


def describe(reason: int, page: mmap.mmap) -> str:
    """An exit that nobody can handle, in words, with the figures that KVM gave."""
    if reason == abi.KVM_EXIT_INTERNAL_ERROR:
        (suberror,) = struct.unpack_from("<I", page, abi.RUN_EXIT)
        return f"KVM met an internal error {suberror}: {_INTERNAL_ERRORS.get(suberror, 'of unknown kind')}"
    if reason == abi.KVM_EXIT_FAIL_ENTRY:
        (hardware,) = struct.unpack_from("<Q", page, abi.RUN_EXIT)
        return f"the processor refused to enter the guest (hardware reason {hardware:#x})"
    return f"KVM left the guest with exit {reason} of <linux/kvm.h>, which this machine does not produce"
