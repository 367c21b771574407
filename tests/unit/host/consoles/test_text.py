"""A guest's bytes as text: nothing of it can steer a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmservice.host.consoles.text import printable


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"plain text", "plain text"),
        ("späß 日本".encode(), "späß 日本"),
        (b"a\tb", "a\tb"),
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b[1;2;3Hhome\x1b[?25l", "home"),
        (b"\x1b]0;title\x07after", "after"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"\x1bPq#0;2\x1b\\sixel", "sixel"),
        (b"\x1b(Bascii\x1b=\x1b7", "ascii"),
        (b"\x1b[31", ""),
        (b"\x1b]0;never ends", ""),
        (b"\x1b", ""),
        (b"x\x1b", "x"),
        (b"\x1b\x1b[31mx", "x"),
        (b"\x1b[3\x00m", "^@m"),
        (b"bell\x07 null\x00 del\x7f cr\rx", "bell^G null^@ del^? cr^Mx"),
        (b"\xc2\x9b31mC1", "\\x9b31mC1"),
        ("a\u202eb".encode(), "a\\u202eb"),
        ("a\u2028b".encode(), "a\\u2028b"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"bad \xff\xfe utf8 \xc3", "bad \ufffd\ufffd utf8 \ufffd"),
        ("no\u00a0break".encode(), "no\u00a0break"),
        (b"", ""),
    ],
)
def test_line(line: bytes, text: str) -> None:
    assert printable(line) == text


@given(
    st.binary(max_size=64) | st.lists(st.sampled_from([b"\x1b", b"[", b"]", b"\\", b"\x07", b"P", b"m", b"a"])).map(b"".join)
)
def test_no_control_character_survives(line: bytes) -> None:
    for char in printable(line):
        assert char.isprintable() or char in "\t\u00a0\u3000"
