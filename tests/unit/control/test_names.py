"""Bus label escaping, as sd-bus has it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmservice.control.names import bus_name, escape_label


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("demo", "demo"),
        ("web-1", "web_2d1"),
        ("", "_"),
        ("1web", "_31web"),
        ("9", "_39"),
        ("a9", "a9"),
        ("a_b", "a_5fb"),
        ("a.b", "a_2eb"),
        ("UPPER", "UPPER"),
        ("é", "_c3_a9"),
        ("٣", "_d9_a3"),
    ],
)
def test_escape_label(name: str, label: str) -> None:
    assert escape_label(name) == label


def unescape(label: str) -> str:
    if label == "_":
        return ""
    return re.sub(rb"_([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), label.encode()).decode()


@given(st.text(max_size=64))
def test_every_name_has_a_label_of_its_own(name: str) -> None:
    label = escape_label(name)
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", label)
    assert unescape(label) == name


def test_the_longest_name_fits_the_bus() -> None:
    assert bus_name("web-1") == "org.vmservice.VM1.web_2d1"
    assert len(bus_name("a" + "." * 63)) <= 255  # D-Bus specification: the maximum name length
