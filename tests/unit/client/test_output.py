"""What clients print, to the byte."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from vmservice.client.output import as_dict, colours_wanted, details, details_as_dict, size, table
from vmservice.client.overview import Overview
from vmservice.client.units import UnitState
from vmservice.client.usage import Usage
from vmservice.client.vms import DeviceFacts, Facts

UNIT = UnitState("vm@demo.service", "active", "running", 485, result="success", status_text="the VM runs")
DEMO = Overview(
    "demo",
    facts=Facts("demo", "running", 1, 4, 512 << 20, ""),
    unit=UNIT,
    pid=485,
    usage=Usage(12.345, 85354086, 1.0),
    cpu_percent=112.34,
)
WEB = Overview("web-1.example", facts=Facts("web-1.example", "paused", 16, 16, 3 << 30, "poweroff"))
STUCK = Overview("stuck", facts=Facts("stuck", error="the VM stuck did not answer within 2 seconds"))
BROKEN = UnitState("vm@web2.service", "failed", "failed", 0, result="resources")
FAILED = Overview("web2", unit=BROKEN)


def test_the_table_is_aligned() -> None:
    assert table([DEMO, WEB], colours=False) == (
        "NAME           STATE    VCPUS     CPU   MEMORY      USED  LAST-EXIT\n"
        "demo           running  1/4    112.3%  512 MiB  81.4 MiB  -\n"
        "web-1.example  paused   16/16       ?    3 GiB         ?  poweroff"
    )


ALL = (
    "NAME   STATE    VCPUS     CPU   MEMORY      USED  LAST-EXIT  REASON\n"
    "demo   running  1/4    112.3%  512 MiB  81.4 MiB  -\n"
    "stuck  ?        ?           ?        ?         ?  ?          the VM stuck did not answer within 2 seconds\n"
    "web2   failed   -           -        -         -  -          the host lacked resources to start it"
)


def test_reasons_are_in_a_last_column() -> None:
    assert table([DEMO, STUCK, FAILED], colours=False) == ALL


@pytest.mark.parametrize("width", [80, 30, 8])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    shown = table([DEMO, STUCK, FAILED], colours=False, width=width).splitlines()
    assert shown == [line if len(line) <= width else f"{line[: width - 1]}…" for line in ALL.splitlines()]


@pytest.mark.parametrize("width", [None, 12])
def test_colours_do_not_move_a_column(width: int | None) -> None:
    plain, coloured = (table([DEMO, STUCK, WEB, FAILED], colours=colours, width=width) for colours in (False, True))
    for code in ("\x1b[32mrunn", "\x1b[33mpaus", "\x1b[31m?   ", "\x1b[31mfail"):
        assert (code in coloured) is (width is None)
    for code in ("\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "wanted"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_when_colours_are_wanted(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, environment: dict[str, str], wanted: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colours_wanted(stream) is wanted


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 40, "1 TiB"), (1536 << 20, "1536 MiB"), (4096, "4 KiB"), (4097, "4097 B"), (0, "0 B"), (-1, "-1 B"), (None, "?")],
)
def test_memory_is_in_the_largest_unit_that_takes_it_whole(size: int | None, text: str) -> None:
    assert f"Memory: {text}, " in details(Overview("demo", facts=Facts("demo", memory=size)), colours=False)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (85354086, "81.4 MiB"), (812 << 20, "812 MiB"), (3 << 29, "1.5 GiB")],
)
def test_what_is_used_has_three_digits(number: int, text: str) -> None:
    assert size(number) == text


def test_details() -> None:
    assert details(DEMO, colours=False) == (
        "demo\n"
        "      State: running\n"
        "      vCPUs: 1 of 4\n"
        "        CPU: 112.3% of one processor, 12.3 s since the start\n"
        "     Memory: 512 MiB, 81.4 MiB used of the host's\n"
        "  Last exit: -\n"
        "   Bus name: org.vmservice.VM1.demo\n"
        "    Process: 485\n"
        "       Unit: vm@demo.service, active (running), main process 485"
    )
    assert "State: \x1b[32mrunning\x1b[0m\n" in details(DEMO, colours=True)
    by_hand = details(replace(DEMO, unit=UnitState("vm@demo.service", "inactive", "dead", 0)), colours=False)
    assert by_hand.endswith("Unit: vm@demo.service, inactive (dead)")
    assert "Unit" not in details(replace(DEMO, unit=None), colours=False)
    stopping = replace(DEMO, unit=replace(UNIT, active_state="deactivating", sub_state="stop-sigterm"))
    assert "      State: stopping (the VM is running)\n" in details(stopping, colours=False)
    assert details(FAILED, colours=False) == (
        "web2\n"
        "          State: failed\n"
        "         Reason: the host lacked resources to start it\n"
        "           Unit: vm@web2.service, failed (failed)\n"
        "  Configuration: /etc/vmservice/web2.toml"
    )


@pytest.mark.parametrize(("ready", "line"), [(True, "      Guest: ready"), (False, "      Guest: not ready")])
def test_whether_the_guest_is_ready(ready: bool, line: str) -> None:
    assert line in shown(Facts("demo", guest_ready=ready)).splitlines()
    assert "Guest" not in shown(Facts("demo")), "an older VMM does not say"


def shown(facts: Facts) -> str:
    return details(Overview("demo", facts=facts), colours=False)


DISK = DeviceFacts("disk", "root", {"path": "/a b.raw", "size": 8 << 30, "readonly": True, "ephemeral": False})
SERIAL = DeviceFacts("console", "serial", {"mode": "journal"})
NAMELESS = DeviceFacts("rng", "", {})


def test_devices_are_in_columns() -> None:
    text = shown(Facts("demo", devices=(SERIAL, DISK, NAMELESS)))
    assert text.endswith(
        "    Process: ?\n"
        "    Devices: console  serial  mode journal\n"
        "             disk     root    path /a b.raw, size 8 GiB, readonly\n"
        "             rng"
    )
    assert shown(Facts("demo", devices=())).endswith("\n    Devices: -")
    assert "Devices" not in shown(Facts("demo")), "an older VMM does not say"


def test_devices_and_counters_for_programs() -> None:
    said = details_as_dict(Overview("demo", facts=Facts("demo", devices=(SERIAL,), stats={"vcpu.exits": 7.0})))
    assert said["devices"] == [{"kind": "console", "name": "serial", "details": {"mode": "journal"}}]
    assert said["stats"] == {"vcpu.exits": 7.0}


def test_for_programs() -> None:
    assert as_dict(DEMO) == {
        "name": "demo",
        "bus_name": "org.vmservice.VM1.demo",
        "condition": "running",
        "state": "running",
        "vcpus": 1,
        "max_vcpus": 4,
        "memory": 512 << 20,
        "last_exit": "",
        "guest_ready": None,
        "devices": None,
        "pid": 485,
        "cpu_percent": 112.3,
        "cpu_sec": 12.345,
        "memory_used": 85354086,
        "unit": {
            "name": "vm@demo.service",
            "active_state": "active",
            "sub_state": "running",
            "main_pid": 485,
            "result": "success",
            "exit_status": None,
            "status_text": "the VM runs",
        },
        "reason": None,
        "error": None,
    }
    sentence = "the VM stuck did not answer within 2 seconds"
    assert (as_dict(STUCK)["condition"], as_dict(STUCK)["reason"], as_dict(STUCK)["error"]) == (None, sentence, sentence)
    failed = as_dict(FAILED)
    assert (failed["condition"], failed["state"], failed["error"]) == ("failed", None, None)


def test_the_keys_are_the_same_whatever_the_state() -> None:
    stopped = Overview("demo")
    for vm in (DEMO, WEB, STUCK, FAILED):
        assert list(as_dict(vm)) == list(as_dict(stopped))
        assert list(details_as_dict(vm)) == list(details_as_dict(stopped)) == [*as_dict(stopped), "stats"]
