"""What clients print, to the byte."""

from __future__ import annotations

import io

import pytest

from vmservice.client.output import as_dict, colours_wanted, details, details_as_dict, table
from vmservice.client.units import UnitState
from vmservice.client.vms import DeviceFacts, Facts

DEMO = Facts("demo", "running", 1, 4, 512 << 20, "")
WEB = Facts("web-1.example", "paused", 16, 16, 3 << 30, "poweroff")
STUCK = Facts("stuck", error="the VM stuck did not answer within 2 seconds")
UNIT = UnitState("vm@demo.service", "active", "running", 485)


def test_the_table_is_aligned() -> None:
    assert table([DEMO, STUCK, WEB], colours=False) == (
        "NAME           STATE    VCPUS  MEMORY   LAST-EXIT\n"
        "demo           running  1/4    512 MiB  -\n"
        "stuck          ?        ?      ?        ?\n"
        "web-1.example  paused   16/16  3 GiB    poweroff"
    )


def test_colours_do_not_move_a_column() -> None:
    plain, coloured = (table([DEMO, STUCK, WEB], colours=colours) for colours in (False, True))
    assert "\x1b[32mrunning\x1b[0m" in coloured
    assert "\x1b[33mpaused \x1b[0m" in coloured
    assert "\x1b[31m?      \x1b[0m" in coloured
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
    assert f"Memory: {text}\n" in details(Facts("demo", memory=size), None, None, colours=False)


def test_details() -> None:
    assert details(DEMO, 485, UNIT, colours=False) == (
        "demo\n"
        "      State: running\n"
        "      vCPUs: 1 of 4\n"
        "     Memory: 512 MiB\n"
        "  Last exit: -\n"
        "   Bus name: org.vmservice.VM1.demo\n"
        "    Process: 485\n"
        "       Unit: vm@demo.service, active (running), main process 485"
    )
    assert "State: \x1b[32mrunning\x1b[0m\n" in details(DEMO, 485, UNIT, colours=True)
    by_hand = details(DEMO, 485, UnitState("vm@demo.service", "inactive", "dead", 0), colours=False)
    assert by_hand.endswith("Unit: vm@demo.service, inactive (dead)")
    assert "Unit" not in details(DEMO, None, None, colours=False)


@pytest.mark.parametrize(("ready", "line"), [(True, "      Guest: ready"), (False, "      Guest: not ready")])
def test_whether_the_guest_is_ready(ready: bool, line: str) -> None:
    assert line in details(Facts("demo", guest_ready=ready), None, None, colours=False).splitlines()
    assert "Guest" not in details(Facts("demo"), None, None, colours=False), "an older VMM does not say"


DISK = DeviceFacts("disk", "root", {"path": "/a b.raw", "size": 8 << 30, "readonly": True, "ephemeral": False})
SERIAL = DeviceFacts("console", "serial", {"mode": "journal"})
NAMELESS = DeviceFacts("rng", "", {})


def test_devices_are_in_columns() -> None:
    text = details(Facts("demo", devices=(SERIAL, DISK, NAMELESS)), None, None, colours=False)
    assert text.endswith(
        "    Process: ?\n"
        "    Devices: console  serial  mode journal\n"
        "             disk     root    path /a b.raw, size 8 GiB, readonly\n"
        "             rng"
    )
    assert details(Facts("demo", devices=()), None, None, colours=False).endswith("\n    Devices: -")
    assert "Devices" not in details(Facts("demo"), None, None, colours=False), "an older VMM does not say"


def test_devices_and_counters_for_programs() -> None:
    vm = Facts("demo", devices=(SERIAL,), stats={"vcpu.exits": 7.0})
    said = details_as_dict(vm, None, None)
    assert said["devices"] == [{"kind": "console", "name": "serial", "details": {"mode": "journal"}}]
    assert said["stats"] == {"vcpu.exits": 7.0}


def test_for_programs() -> None:
    assert as_dict(WEB) == {
        "name": "web-1.example",
        "bus_name": "org.vmservice.VM1.web_2d1_2eexample",
        "state": "paused",
        "vcpus": 16,
        "max_vcpus": 16,
        "memory": 3 << 30,
        "last_exit": "poweroff",
        "guest_ready": None,
        "devices": None,
        "error": None,
    }
    assert as_dict(STUCK)["state"] is None
    assert as_dict(STUCK)["error"] == "the VM stuck did not answer within 2 seconds"
    unit = {"name": "vm@demo.service", "active_state": "active", "sub_state": "running", "main_pid": 485}
    assert details_as_dict(DEMO, 485, UNIT) == {**as_dict(DEMO), "stats": None, "pid": 485, "unit": unit}
    assert details_as_dict(DEMO, None, None) == {**as_dict(DEMO), "stats": None, "pid": None, "unit": None}
