"""A guest's console output as text that is safe to print: no byte of it can steer a terminal."""

from __future__ import annotations

ESC = 0x1B
_BEL = 0x07
# After ESC, the strings that last until BEL or ST (ECMA-48 §8.3): DCS, SOS, OSC, PM, APC.
_STRING_STARTS = b"PX]^_"
_HARMLESS = "\t\u00a0\u3000"


def printable(line: bytes) -> str:
    """One line of output without escape sequences; other control characters as `^X`, `\\x9b` or `\\u202e`, bad UTF-8 as U+FFFD.

    Bidirectional overrides and zero-width characters count as control characters: they too make a terminal show what is not
    there.
    """
    text = (without_escapes(line) if ESC in line else line).decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in _HARMLESS else _spelled(char) for char in text)


def without_escapes(line: bytes) -> bytes:
    """`line` without its ECMA-48 sequences: ESC [ … final, ESC ] … BEL or ST, and the short ones."""
    kept = bytearray()
    position = 0
    while position < len(line):
        start = line.find(ESC, position)
        if start < 0:
            break
        kept += line[position:start]
        position = _end_of_escape(line, start + 1)
    kept += line[position:]
    return bytes(kept)


def _end_of_escape(line: bytes, position: int) -> int:
    """Where the sequence ends whose ESC was before `position`; a sequence that is cut off ends with the line."""
    if position >= len(line):
        return position
    first = line[position]
    if first == ord("["):
        position += 1
        while position < len(line) and 0x20 <= line[position] <= 0x3F:  # parameter and intermediate bytes
            position += 1
        return position + 1 if position < len(line) and 0x40 <= line[position] <= 0x7E else position
    if first in _STRING_STARTS:
        while position < len(line):
            if line[position] == _BEL:
                return position + 1
            if line[position] == ESC:
                return position + 2 if line[position + 1 : position + 2] == b"\\" else position
            position += 1
        return position
    while position < len(line) and 0x20 <= line[position] <= 0x2F:  # ESC ( B and the like
        position += 1
    return position + 1 if position < len(line) and 0x30 <= line[position] <= 0x7E else position


def _spelled(char: str) -> str:
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"^{chr(code ^ 0x40)}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
