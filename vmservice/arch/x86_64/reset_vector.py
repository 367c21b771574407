"""What stands at F000:FFF0, where a PC's BIOS begins, when the guest was started without a firmware.

Linux on hardware-reduced ACPI asks for an EFI reset, finds no EFI, and falls back to BOOT_BIOS (arch/x86/kernel/reboot.c):
it goes to real mode and jumps to F000:FFF0, without a try at the FADT's reset register. In empty memory it would spin there.
"""

from __future__ import annotations

from vmservice.acpi.tables import RESET_VALUE
from vmservice.arch.x86_64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.memory.guest_memory import GuestMemory


def write_reset_vector(memory: GuestMemory) -> None:
    """Real-mode code of nine bytes that writes the reset register and halts."""
    code = (
        bytes((0xB0, RESET_VALUE))  # mov al, RESET_VALUE
        + b"\xba"
        + layout.POWER_PORT.to_bytes(2, "little")  # mov dx, POWER_PORT
        + b"\xee"  # out dx, al
        + b"\xf4"  # hlt
        + b"\xeb\xfd"  # jmp to the hlt: an NMI ends it
    )
    memory.write(layout.WARM_RESET_VECTOR, code)
