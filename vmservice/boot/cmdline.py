"""The kernel's command line: checked, then put where the zero page points."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.boot.kernel import LoadedKernel
    from vmservice.memory.guest_memory import GuestMemory


def write_cmdline(text: str, memory: GuestMemory, kernel: LoadedKernel) -> int:
    """Write `text` and a NUL to layout.CMDLINE and return its length in bytes, without the NUL.

    ConfigError if the kernel would not take it whole, or if it is not one printable line.
    """
    encoded = text.encode()
    limit = min(kernel.cmdline_max, layout.CMDLINE_MAX_SIZE - 1)
    if len(encoded) > limit:
        raise ConfigError(f"the kernel command line has {len(encoded)} bytes; this kernel takes at most {limit}")
    if not text.isprintable():
        character = next(character for character in text if not character.isprintable())
        raise ConfigError(f"the kernel command line has {quoted(character)}; it must be one line of printable characters")
    memory.write(layout.CMDLINE, encoded + b"\0")
    return len(encoded)
