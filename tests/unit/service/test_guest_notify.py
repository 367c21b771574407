"""A guest's message, from bytes to fields: what counts, and what no guest gets through."""

from __future__ import annotations

import random

import pytest

from vmservice.service.guest_notify import FIELDS_MAX, STATUS_MAX_CHARS, VALUE_MAX_CHARS, parse


def test_what_systemd_says_at_its_boot() -> None:
    first = parse(b"STATUS=Starting Foo...\nX_SYSTEMD_HOSTNAME=web\nX_SYSTEMD_MACHINE_ID=0123\nX_SYSTEMD_SIGNALS_LEVEL=2")
    assert (first.is_ready, first.goes_down, first.status, first.exit_status) == (False, False, "Starting Foo...", None)
    assert first.fields == {
        "X_SYSTEMD_HOSTNAME": "web",
        "X_SYSTEMD_MACHINE_ID": "0123",
        "X_SYSTEMD_SIGNALS_LEVEL": "2",
    }
    ready = parse(b"READY=1\nSTATUS=Startup finished in 1s.")
    assert (ready.is_ready, ready.status, ready.fields) == (True, "Startup finished in 1s.", {})


def test_what_systemd_says_at_its_end() -> None:
    message = parse(b"EXIT_STATUS=3\nX_SYSTEMD_SHUTDOWN=poweroff\nX_SYSTEMD_REBOOT_PARAMETER=x")
    assert (message.goes_down, message.exit_status, message.is_ready) == (True, 3, False)
    assert message.fields["X_SYSTEMD_SHUTDOWN"] == "poweroff"
    assert parse(b"STOPPING=1").goes_down


@pytest.mark.parametrize("value", [b"", b"256", b"-1", b"1.0", b"0x1", b" 1", b"9" * 1000, "٣".encode(), b"one"])
def test_an_exit_status_that_is_none(value: bytes) -> None:
    assert parse(b"EXIT_STATUS=" + value).exit_status is None


def test_an_exit_status_has_all_values_of_a_byte() -> None:
    assert [parse(b"EXIT_STATUS=%d" % value).exit_status for value in (0, 1, 255)] == [0, 1, 255]


@pytest.mark.parametrize("data", [b"", b"READY", b"READY=", b"READY=0", b"READY=11", b"ready=1", b" READY=1", b"X=1\0READY=1"])
def test_what_is_no_readiness(data: bytes) -> None:
    assert not parse(data).is_ready


def test_nothing_of_it_steers_a_terminal_or_fills_the_journal() -> None:
    message = parse(b"STATUS=\x1b[31mred\x07\xff" + b"s" * 3000 + b"\nX_SYSTEMD_HOSTNAME=\x1b]0;title\x07" + b"h" * 900)
    assert message.status is not None
    assert message.status.startswith("red^G\ufffds")
    assert len(message.status) == STATUS_MAX_CHARS
    assert message.fields["X_SYSTEMD_HOSTNAME"] == "h" * VALUE_MAX_CHARS
    assert parse(b"STATUS=" + b"\x01" * 3000).status == ("^A" * STATUS_MAX_CHARS)[:STATUS_MAX_CHARS]


@pytest.mark.parametrize(
    "name", [b"MESSAGE", b"_UID", b"X_SYSTEMD_a", b"X_SYSTEMD_" + b"A" * 60, b"X_SYSTEMD_\xc3\x84", b"X_OTHER"]
)
def test_fields_that_do_not_reach_the_journal(name: bytes) -> None:
    assert parse(name + b"=1").fields == {}


def test_so_many_fields_and_no_more() -> None:
    assert len(parse(b"\n".join(b"X_SYSTEMD_%d=1" % number for number in range(200))).fields) == FIELDS_MAX


def test_any_bytes() -> None:
    rng = random.Random("notify")
    pieces = [b"READY=1", b"STATUS=", b"EXIT_STATUS=", b"X_SYSTEMD_A=", b"\n", b"=", b"\0", b"\xff", b"\x1b[", b"7", b"a" * 500]
    for _ in range(5_000):
        message = parse(b"".join(rng.choices(pieces, k=rng.randrange(30))))
        texts = [message.status or "", *message.fields, *message.fields.values()]
        assert all(text.isprintable() or not set(text) - set("\t\u00a0\u3000") for text in texts)
        assert all(len(text) <= VALUE_MAX_CHARS for text in texts)
        assert message.exit_status is None or 0 <= message.exit_status <= 255
