"""SMBIOS tables (DMTF DSP0134, 3.3): what the guest's firmware would say of the machine, and strings that systemd reads."""

from __future__ import annotations

import binascii
import struct

from vmservice.arch.x86_64 import layout
from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.memory.guest_memory import GuestMemory

VENDOR = "vmservice"
PRODUCT = "Virtual Machine"
# Linux works round faults of PCs by the year of their BIOS, and takes one without a date for an old one.
_RELEASE_DATE = "01/01/2026"

# §5.2.2 the 64-bit entry point; §6.1.2 the header of a structure; §7.1, §7.2, §7.12 the types 0, 1 and 11.
_ENTRY = struct.Struct("<5sBBBBBBBIQ")
_HEADER = struct.Struct("<BBH")
_BIOS = struct.Struct("<BBHBBQBBBBBBH")
_SYSTEM = struct.Struct("<BBBB16sBBB")
_OEM_STRINGS = struct.Struct("<B")
_TYPE_BIOS, _TYPE_SYSTEM, _TYPE_OEM_STRINGS, _TYPE_END = 0, 1, 11, 127

_MAJOR, _MINOR = 3, 3
_ENTRY_REVISION = 1
_CHARACTERISTICS_NOT_SUPPORTED = 1 << 3
_IS_VIRTUAL_MACHINE = 1 << 4  # of the second extension byte
_NO_RELEASE = 0xFF
_WAKE_UP_POWER_SWITCH = 6

# A structure counts its strings in a byte.
_MOST_STRINGS = 255
# systemd before 256 reads less than a page of a structure, and none behind one that is longer: import_credentials_smbios().
_OLD_SYSTEMD_MAX_BYTES = 4095
_FIRST_OEM_HANDLE = 0xB00
_END_HANDLE = 0x7F00

TABLES_MAX_BYTES = layout.WARM_RESET_VECTOR - layout.SMBIOS_TABLES
# Linux copies each OEM string, with a struct dmi_device for it, into 64 KiB that it has for that and for little else, and is
# at a BUG() before its first word where they are full: dmi_save_oem_strings_devices(), RESERVE_BRK(dmi_alloc, 65536).
_LINUX_COPIES_MAX_BYTES = 62 * layout.KIB
_LINUX_DEVICE_BYTES = 40
_LINUX_ALIGNMENT = 4


def credential_string(name: str, value: bytes) -> bytes:
    """The OEM string that gives systemd in the guest the credential `name`: systemd(1), since 252."""
    return f"io.systemd.credential.binary:{name}=".encode() + binascii.b2a_base64(value, newline=False)


def tables(*, uuid: bytes, serial: str, version: str, oem_strings: Sequence[bytes] = ()) -> bytes:
    """All structures, packed: BIOS, system, OEM strings, end.

    `uuid` are the 16 bytes in the order in which people write them. No string is empty or has a NUL; an empty `serial` is none.
    """
    structures = [_bios(version), _system(uuid, serial, version)]
    for number, strings in enumerate(_pages(oem_strings)):
        structures.append(_oem_strings(_FIRST_OEM_HANDLE + number, strings))
    return b"".join((*structures, _structure(_TYPE_END, _END_HANDLE, b"", ())))


def _pages(strings: Sequence[bytes]) -> list[list[bytes]]:
    """The strings of each structure, the shortest first: what an old systemd can read comes before what it cannot."""
    pages: list[list[bytes]] = []
    room = 0
    for string in sorted(strings, key=len):
        size = len(string) + 1
        if not pages or size > room or len(pages[-1]) == _MOST_STRINGS:
            pages.append([])
            room = _OLD_SYSTEMD_MAX_BYTES - _HEADER.size - _OEM_STRINGS.size - 1
        pages[-1].append(string)
        room -= size
    return pages


def check_room(size_bytes: int, oem_strings: Sequence[bytes]) -> None:
    """ConfigError where tables of that size, with these strings, are more than there is room for, in memory or in Linux."""
    if size_bytes > TABLES_MAX_BYTES:
        about = f"about {TABLES_MAX_BYTES * 3 // 4 >> 10} KiB of credentials"
        raise ConfigError(
            f"the credentials take {size_bytes} bytes of SMBIOS tables; at most {TABLES_MAX_BYTES} fit, which is {about}"
        )
    lengths = (len(string) + 1 for string in oem_strings)
    copies = sum(length + -length % _LINUX_ALIGNMENT + _LINUX_DEVICE_BYTES for length in lengths)
    if copies > _LINUX_COPIES_MAX_BYTES:
        raise ConfigError(
            f"the {len(oem_strings)} credentials take {copies} bytes of what Linux has for SMBIOS strings when it starts;"
            f" at most {_LINUX_COPIES_MAX_BYTES} are possible, {_LINUX_DEVICE_BYTES} of them for each"
        )


def write_smbios(memory: GuestMemory, data: bytes) -> None:
    """`data`, what `tables` returns and `check_room` has let pass, and the entry point that leads to it."""
    memory.write(layout.SMBIOS_TABLES, data)
    memory.write(layout.SMBIOS_ENTRY, entry_point(layout.SMBIOS_TABLES, len(data)))


def entry_point(gpa: int, size_bytes: int) -> bytes:
    """For tables of that size at `gpa`. All its bytes sum up to 0 (modulo 256)."""
    fields = (_ENTRY.size, _MAJOR, _MINOR, 0, _ENTRY_REVISION, 0, size_bytes, gpa)
    entry = bytearray(_ENTRY.pack(b"_SM3_", 0, *fields))
    entry[5] = -sum(entry) & 0xFF
    return bytes(entry)


def _bios(version: str) -> bytes:
    release = (_NO_RELEASE, _NO_RELEASE, _NO_RELEASE, _NO_RELEASE)  # of the BIOS and of the embedded controller
    body = _BIOS.pack(1, 2, 0, 3, 0, _CHARACTERISTICS_NOT_SUPPORTED, 0, _IS_VIRTUAL_MACHINE, *release, 0)
    return _structure(_TYPE_BIOS, 0, body, (VENDOR.encode(), version.encode(), _RELEASE_DATE.encode()))


def _system(uuid: bytes, serial: str, version: str) -> bytes:
    # The first three fields are little-endian (§7.2.1).
    mixed = uuid[3::-1] + uuid[5:3:-1] + uuid[7:5:-1] + uuid[8:]
    body = _SYSTEM.pack(1, 2, 3, 4 if serial else 0, mixed, _WAKE_UP_POWER_SWITCH, 0, 0)
    strings = [VENDOR.encode(), PRODUCT.encode(), version.encode()]
    return _structure(_TYPE_SYSTEM, 1, body, [*strings, serial.encode()] if serial else strings)


def _oem_strings(handle: int, strings: Sequence[bytes]) -> bytes:
    return _structure(_TYPE_OEM_STRINGS, handle, _OEM_STRINGS.pack(len(strings)), strings)


def _structure(kind: int, handle: int, body: bytes, strings: Sequence[bytes]) -> bytes:
    """§6.1.3: each string ends with a NUL, and all of them with one more; two where there is none."""
    if any(not string or b"\0" in string for string in strings):
        raise ValueError(f"a string of SMBIOS type {kind} is empty or has a NUL")
    ends = b"".join(string + b"\0" for string in strings) or b"\0"
    return b"".join((_HEADER.pack(kind, _HEADER.size + len(body), handle), body, ends, b"\0"))
