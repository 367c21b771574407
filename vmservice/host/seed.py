"""A disk from which cloud-init takes what it is told (its data source NoCloud), as the bytes of an ISO 9660 file system.

ECMA-119 in its plainest form: one folder, names in capitals. Linux shows them in small letters and without their ";1" (isofs).
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# By which cloud-init finds it.
LABEL = b"CIDATA"

_SECTOR_BYTES = 2048
_DESCRIPTOR_SECTOR = 16
_PATH_TABLE_SECTORS = (18, 19)
_ROOT_SECTOR = 20
_FIRST_FILE_SECTOR = 21
_FOLDER = 2

_PATH_TABLE_BYTES = 10


def seed_image(files: Mapping[str, bytes]) -> bytes:
    """An image with these files, by names such as "user-data"."""
    place = _FIRST_FILE_SECTOR
    records, contents = [], []
    for name, content in sorted(files.items()):
        records.append(_record(f"{name.upper()}.;1".encode(), place, len(content), 0))
        contents.append(_padded(content))
        place += len(contents[-1]) // _SECTOR_BYTES
    itself = _record(b"\0", _ROOT_SECTOR, _SECTOR_BYTES, _FOLDER)
    parent = _record(b"\1", _ROOT_SECTOR, _SECTOR_BYTES, _FOLDER)
    terminator = b"\xffCD001\x01"
    # The root's entry: length of its name, attributes, sector, number of its parent, name.
    tables = [struct.pack(f"{order}BBIHBx", 1, 0, _ROOT_SECTOR, 1, 0) for order in "<>"]
    parts = [_descriptor(place, itself), terminator, *tables, itself + parent + b"".join(records), *contents]
    return bytes(_DESCRIPTOR_SECTOR * _SECTOR_BYTES) + b"".join(_padded(part) for part in parts)


def meta_data(instance_id: str, host_name: str, keys: str) -> bytes:
    """YAML. `keys` are lines as in authorized_keys; an instance that cloud-init knows already is not set up again."""
    lines = [f"instance-id: {_scalar(instance_id)}", f"local-hostname: {_scalar(host_name)}"]
    each = [line.strip() for line in keys.splitlines() if line.strip() and not line.startswith("#")]
    if each:
        lines += ["public-keys:", *(f"- {_scalar(line)}" for line in each)]
    return "\n".join([*lines, ""]).encode()


def host_name_of(vm: str) -> str:
    """The name of a VM as one of a host (RFC 1123)."""
    return vm.replace("_", "-").strip("-.")


def _descriptor(sectors: int, root: bytes) -> bytes:
    """The primary volume descriptor: §8.4."""
    low, high = _PATH_TABLE_SECTORS
    head = b"\x01CD001\x01\0" + b" " * 32 + LABEL.ljust(32) + bytes(8) + _both(sectors) + bytes(32)
    head += _both(1, 2) * 2 + _both(_SECTOR_BYTES, 2) + _both(_PATH_TABLE_BYTES)
    head += struct.pack("<II", low, 0) + struct.pack(">II", high, 0) + root
    # Names of people and files, four dates that are not given, version 1.
    return head + b" " * (4 * 128 + 3 * 37) + (b"0" * 16 + b"\0") * 4 + b"\x01\0"


def _record(name: bytes, sector: int, size: int, flags: int) -> bytes:
    padding = 1 - len(name) % 2
    length = 33 + len(name) + padding
    head = struct.pack("<BB", length, 0) + _both(sector) + _both(size) + bytes(7)
    return head + struct.pack("<BBB", flags, 0, 0) + _both(1, 2) + struct.pack("<B", len(name)) + name + bytes(padding)


def _both(value: int, size: int = 4) -> bytes:
    """In both orders of bytes: §7.2.3, §7.3.3."""
    return value.to_bytes(size, "little") + value.to_bytes(size, "big")


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _SECTOR_BYTES)


def _scalar(text: str) -> str:
    """In single quotes, which YAML ends at a single one only; control characters are left out."""
    plain = "".join(letter for letter in text if letter.isprintable())
    return "'" + plain.replace("'", "''") + "'"
