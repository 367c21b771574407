"""ACPI machine language, built bottom up: every function takes finished AML and returns AML (ACPI 6.5 §20).

Names and values of the wrong form are mistakes of ours, so ValueError; nothing here comes from a guest or an operator.
"""

from __future__ import annotations

import struct

# --- opcodes, ACPI 6.5 §20.3 ---------------------------------------------------------------------------------------------
_ZERO_OP = b"\x00"
_ONE_OP = b"\x01"
_NAME_OP = b"\x08"
_BYTE_PREFIX = b"\x0a"
_WORD_PREFIX = b"\x0b"
_DWORD_PREFIX = b"\x0c"
_STRING_PREFIX = b"\x0d"
_QWORD_PREFIX = b"\x0e"
_SCOPE_OP = b"\x10"
_BUFFER_OP = b"\x11"
_PACKAGE_OP = b"\x12"
_METHOD_OP = b"\x14"
_DUAL_NAME_PREFIX = b"\x2e"
_MULTI_NAME_PREFIX = b"\x2f"
_OP_REGION_OP = b"\x5b\x80"
_FIELD_OP = b"\x5b\x81"
_DEVICE_OP = b"\x5b\x82"
_MUTEX_OP = b"\x5b\x01"
_ACQUIRE_OP = b"\x5b\x23"
_RELEASE_OP = b"\x5b\x27"
_STORE_OP = b"\x70"
_ADD_OP = b"\x72"
_AND_OP = b"\x7b"
_NOTIFY_OP = b"\x86"
_LEQUAL_OP = b"\x93"
_LLESS_OP = b"\x95"
_IF_OP = b"\xa0"
_WHILE_OP = b"\xa2"
_RETURN_OP = b"\xa4"
_ONES_OP = b"\xff"
_NULL_NAME = b"\x00"

LOCAL0 = b"\x60"
ARG0 = b"\x68"
ARG1 = b"\x69"

# --- values of fields ----------------------------------------------------------------------------------------------------
SYSTEM_IO = 1  # operation region space, §20.2.5.2
BYTE_ACCESS, DWORD_ACCESS = 1, 3  # field access, §20.2.5.2
PRESERVE, WRITE_AS_ZEROS = 0, 2  # field update rule

_U64_MAX = (1 << 64) - 1


# --- lengths and names ---------------------------------------------------------------------------------------------------
def pkg_length(body_size: int) -> bytes:
    """The PkgLength in front of `body_size` bytes: 1 to 4 bytes that count themselves too (§20.2.4)."""
    for size in range(1, 5):
        total = body_size + size
        if total <= _max_length(size):
            return _encode_length(total, size)
    raise ValueError(f"an AML package of {body_size} bytes: at most {_max_length(4) - 4} can be encoded")


def _field_length(bits: int) -> bytes:
    """A PkgLength that counts a field's bits, and so not itself (§20.2.5.2)."""
    for size in range(1, 5):
        if 0 < bits <= _max_length(size):
            return _encode_length(bits, size)
    raise ValueError(f"a field of {bits} bits: 1 to {_max_length(4)} can be encoded")


def _max_length(size: int) -> int:
    """One byte has 6 bits of length; each further byte adds 8 to the 4 that the first then keeps."""
    return 0x3F if size == 1 else (1 << 4 + 8 * (size - 1)) - 1


def _encode_length(length: int, size: int) -> bytes:
    if size == 1:
        return bytes((length,))
    return bytes((size - 1 << 6 | length & 0xF,)) + (length >> 4).to_bytes(size - 1, "little")


def _package(opcode: bytes, body: bytes) -> bytes:
    return opcode + pkg_length(len(body)) + body


def name_string(path: str) -> bytes:
    r"""A name or path as in ASL: `PWRB`, `\_SB.PCI0`, `^GDAT`; segments are padded with `_` to four characters (§20.2.2)."""
    bare = path.lstrip("\\^")
    prefix = path[: len(path) - len(bare)]
    if "\\" in prefix[1:] or (prefix.startswith("\\") and len(prefix) > 1):
        raise ValueError(f"the ACPI path {path!r} mixes prefixes: either one backslash or any number of carets may lead")
    segments = [_name_segment(segment, path) for segment in bare.split(".")] if bare else []
    if not segments:
        name = _NULL_NAME
    elif len(segments) == 1:
        name = segments[0]
    elif len(segments) == 2:
        name = _DUAL_NAME_PREFIX + b"".join(segments)
    else:
        name = _MULTI_NAME_PREFIX + bytes((len(segments),)) + b"".join(segments)
    return prefix.encode() + name


def _name_segment(segment: str, path: str) -> bytes:
    valid = (
        1 <= len(segment) <= 4
        and all(char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789" for char in segment)
        and not segment[0].isdigit()
    )
    if not valid:
        raise ValueError(f"{segment!r} in the ACPI path {path!r} is no name: one to four of A-Z, 0-9 and _, no digit first")
    return segment.ljust(4, "_").encode()


# --- data ----------------------------------------------------------------------------------------------------------------
def integer(value: int) -> bytes:
    """The shortest constant for 0 <= value < 2^64 (§20.2.3)."""
    if not 0 <= value <= _U64_MAX:
        raise ValueError(f"{value} is no AML integer: 0 to {_U64_MAX} are")
    if value == 0:
        return _ZERO_OP
    if value == 1:
        return _ONE_OP
    if value == _U64_MAX:
        return _ONES_OP
    for prefix, size in ((_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4)):
        if value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    return _QWORD_PREFIX + value.to_bytes(8, "little")


def string(text: str) -> bytes:
    """Printable or other ASCII without NUL (§20.2.3)."""
    if "\0" in text:
        raise ValueError(f"the AML string {text!r} holds a NUL, which would end it")
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def buffer(data: bytes) -> bytes:
    return _package(_BUFFER_OP, integer(len(data)) + data)


def package(*elements: bytes) -> bytes:
    """At most 255 elements, each finished AML (§20.2.5.4)."""
    return _package(_PACKAGE_OP, bytes((len(elements),)) + b"".join(elements))


def eisaid(text: str) -> bytes:
    """An EISA id such as `PNP0501` as the integer that _HID takes: three letters of 5 bits and four hex digits, big-endian."""
    letters, digits = text[:3], text[3:]
    if len(text) != 7 or not all("A" <= char <= "Z" for char in letters):
        raise ValueError(f"{text!r} is no EISA id: three capital letters and four hexadecimal digits are")
    number = 0
    for char in letters:
        number = number << 5 | ord(char) - 0x40
    number = number << 16 | int(digits, 16)
    return _DWORD_PREFIX + number.to_bytes(4, "big")


# --- named objects -------------------------------------------------------------------------------------------------------
def name(path: str, value: bytes) -> bytes:
    return _NAME_OP + name_string(path) + value


def scope(path: str, *objects: bytes) -> bytes:
    return _package(_SCOPE_OP, name_string(path) + b"".join(objects))


def device(path: str, *objects: bytes) -> bytes:
    return _package(_DEVICE_OP, name_string(path) + b"".join(objects))


def method(path: str, arguments: int, *statements: bytes, serialized: bool = False) -> bytes:
    """`arguments`: how many it takes, 0 to 7."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"the method {path} takes {arguments} arguments: 0 to 7 are possible")
    flags = arguments | (1 << 3 if serialized else 0)
    return _package(_METHOD_OP, name_string(path) + bytes((flags,)) + b"".join(statements))


def op_region(path: str, space: int, offset: int, length: int) -> bytes:
    """`space` is SYSTEM_IO or another of §20.2.5.2; `offset` and `length` in bytes."""
    return _OP_REGION_OP + name_string(path) + bytes((space,)) + integer(offset) + integer(length)


def field(region: str, access: int, update: int, *units: tuple[str | None, int]) -> bytes:
    """`units` from bit 0 upwards: (name, bits), with None as the name of bits that are skipped."""
    body = name_string(region) + bytes((access | update << 5,))
    for unit, bits in units:
        body += (_NULL_NAME if unit is None else _name_segment(unit, unit)) + _field_length(bits)
    return _package(_FIELD_OP, body)


def mutex(path: str, sync_level: int) -> bytes:
    """`sync_level`, 0 to 15, orders mutexes that are held together (§19.6.89)."""
    return _MUTEX_OP + name_string(path) + bytes((sync_level,))


# --- statements and expressions ------------------------------------------------------------------------------------------
def store(source: bytes, target: bytes) -> bytes:
    return _STORE_OP + source + target


def and_(left: bytes, right: bytes) -> bytes:
    """The bitwise and, as a value; nothing is stored."""
    return _AND_OP + left + right + _NULL_NAME


def add(left: bytes, right: bytes, target: bytes) -> bytes:
    return _ADD_OP + left + right + target


def equal(left: bytes, right: bytes) -> bytes:
    return _LEQUAL_OP + left + right


def less(left: bytes, right: bytes) -> bytes:
    return _LLESS_OP + left + right


def call(path: str, *arguments: bytes) -> bytes:
    """A method with as many arguments as it takes; the interpreter knows how many from its definition (§20.2.5.4)."""
    return name_string(path) + b"".join(arguments)


def acquire(path: str, timeout_ms: int) -> bytes:
    return _ACQUIRE_OP + name_string(path) + timeout_ms.to_bytes(2, "little")


def release(path: str) -> bytes:
    return _RELEASE_OP + name_string(path)


def if_(condition: bytes, *statements: bytes) -> bytes:
    return _package(_IF_OP, condition + b"".join(statements))


def while_(condition: bytes, *statements: bytes) -> bytes:
    return _package(_WHILE_OP, condition + b"".join(statements))


def notify(path: str, value: int) -> bytes:
    return notify_value(path, integer(value))


def notify_value(path: str, value: bytes) -> bytes:
    """As `notify`, with a value that is worked out: an argument or a local variable."""
    return _NOTIFY_OP + name_string(path) + value


def return_(value: bytes) -> bytes:
    return _RETURN_OP + value


# --- resource descriptors, ACPI 6.5 §6.4 ---------------------------------------------------------------------------------
MEMORY_RANGE, IO_RANGE, BUS_RANGE = range(3)
# Type-specific flags of an address space (§6.4.3.5.5): memory that is read and written, not cached; all of an I/O range.
_TYPE_FLAGS = (0x01, 0x03, 0x00)
# General flags: produced for the devices behind it, positively decoded, minimum and maximum fixed.
_PRODUCER_FIXED = 0x0C


def resource_template(*descriptors: bytes) -> bytes:
    """The buffer that _CRS returns; its end tag's checksum 0 means that it is not to be checked (§6.4.2.9)."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int) -> bytes:
    """An I/O port range with a fixed `base`, all 16 bits decoded (§6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 0x01, base, base, 1, length)


def interrupt(gsi: int, *, edge: bool = True) -> bytes:
    """One active-high, exclusive GSI, consumed; the extended descriptor (§6.4.3.6), which carries no ISA assumptions."""
    consumer = 1 << 0
    return struct.pack("<BHBBI", 0x89, 6, consumer | (1 << 1 if edge else 0), 1, gsi)


def memory32_fixed(base: int, length: int) -> bytes:
    """Memory below 4 GiB, read and written (§6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 0x01, base, length)


def dword_address_space(kind: int, minimum: int, maximum: int) -> bytes:
    """A window [minimum, maximum] for the devices behind a bridge; `kind` is MEMORY_RANGE, IO_RANGE or BUS_RANGE."""
    return _address_space(0x87, "I", kind, minimum, maximum)


def qword_address_space(kind: int, minimum: int, maximum: int) -> bytes:
    """As `dword_address_space`, for 64-bit addresses."""
    return _address_space(0x8A, "Q", kind, minimum, maximum)


def word_address_space(kind: int, minimum: int, maximum: int) -> bytes:
    """As `dword_address_space`, for 16-bit bus numbers and ports; the length has 16 bits too."""
    return _address_space(0x88, "H", kind, minimum, maximum)


def _address_space(tag: int, width: str, kind: int, minimum: int, maximum: int) -> bytes:
    if minimum > maximum:
        raise ValueError(f"the address space {minimum:#x} to {maximum:#x} is empty")
    granularity = translation = 0
    body = struct.pack(
        f"<BBB5{width}",
        kind,
        _PRODUCER_FIXED,
        _TYPE_FLAGS[kind],
        granularity,
        minimum,
        maximum,
        translation,
        maximum - minimum + 1,
    )
    return struct.pack("<BH", tag, len(body)) + body
