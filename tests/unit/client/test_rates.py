"""What `vmservice top` makes of two looks at a VM's counters, and how it sorts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.client import arguments, rates
from vmservice.client.overview import Overview
from vmservice.client.rates import Rates, totals
from vmservice.client.top import ORDERS, Row, as_dict, in_order, table
from vmservice.client.usage import Usage
from vmservice.client.vms import DeviceFacts, Facts

STATS = {
    "vcpu.exits": 1000.0,
    "vcpu.io_exits": 900.0,
    "disk.root.read_bytes": 10.0,
    "disk.a.b.read_bytes": 20.0,
    "disk.root.written_bytes": 5.0,
    "disk.root.reads": 7.0,
    "network.lan.received_bytes": 3.0,
    "network.lan.sent_bytes": 4.0,
    "balloon.actual_bytes": 99.0,
}


def test_the_counters_of_all_devices_are_added_up() -> None:
    assert totals(Overview("a", facts=Facts("a", stats=STATS))) == {
        "exits": 1000,
        "disk_read": 30,
        "disk_written": 5,
        "network_received": 3,
        "network_sent": 4,
    }
    assert totals(Overview("a", facts=Facts("a", stats={"sim.heartbeats": 1.0}))) == {}
    assert totals(Overview("a", facts=Facts("a", error="it hangs"))) == totals(Overview("a")) == {}


def test_what_the_kernel_moves_is_counted_at_the_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "INTERFACES", str(tmp_path))
    for name in ("vt-a", "macvtap0"):
        (tmp_path / name / "statistics").mkdir(parents=True)
        (tmp_path / name / "statistics/rx_bytes").write_text("40\n")
        (tmp_path / name / "statistics/tx_bytes").write_text("30\n")
    (tmp_path / "vt-a/tun_flags").write_text("0x5002\n")

    def network(tap: str, vhost: bool) -> DeviceFacts:
        return DeviceFacts("network", tap, {"tap": tap, "vhost": vhost})

    def found(*devices: DeviceFacts) -> dict[str, float]:
        return totals(Overview("a", facts=Facts("a", devices=devices, stats=STATS)))

    assert (found(network("vt-a", True))["network_received"], found(network("vt-a", True))["network_sent"]) == (33, 44)
    for other in (network("vt-a", False), network("macvtap0", True), network("gone", True), network("../vt-a", True)):
        assert found(other)["network_received"] == 3


def test_rates() -> None:
    before = {"exits": 1000.0, "disk_read": 500.0}
    after = {"exits": 3000.0, "disk_read": 100.0, "network_sent": 7.0}
    # A guest that was reset counts from 0, and what was not counted before has no rate yet.
    assert rates.rates(before, after, 2.0) == Rates(exits=1000.0, disk_read=50.0)
    assert rates.rates(before, after, 0.0) == rates.rates({}, after, 2.0) == Rates()


def row(name: str, cpu: float | None = None, memory: int = 0, **measured: float) -> Row:
    facts = Facts(name, "running", 1, 4, 64 << 20, "")
    return Row(Overview(name, facts=facts, cpu_percent=cpu, usage=Usage(1.0, memory, 0.0)), Rates(**measured))


ROWS = [
    row("web10", 50.04, 1 << 20, exits=5),
    row("web2", 50.0, 3 << 20, disk_read=1, disk_written=1536),
    row("web1", None, 2 << 20, network_sent=9),
    row("a", 0.1),
]


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("cpu", ["web2", "web10", "a", "web1"]),
        ("memory", ["web2", "web1", "web10", "a"]),
        ("exits", ["web10", "a", "web1", "web2"]),
        ("disk", ["web2", "a", "web1", "web10"]),
        ("network", ["web1", "a", "web2", "web10"]),
        ("name", ["a", "web1", "web2", "web10"]),
    ],
)
def test_the_order(order: str, names: list[str]) -> None:
    assert [one.vm.name for one in in_order(ROWS, order)] == names


def test_every_order_can_be_asked_for() -> None:
    assert tuple(ORDERS) == arguments.TOP_ORDERS


def test_the_table() -> None:
    assert table(in_order(ROWS, "cpu"), colours=False, width=None) == (
        "NAME   STATE    VCPUS    CPU     USED  EXITS/S  READ/S  WRITTEN/S  RECEIVED/S  SENT/S\n"
        "web2   running  1/4    50.0%  3.0 MiB        -     1 B    1.5 KiB           -       -\n"
        "web10  running  1/4    50.0%  1.0 MiB        5       -          -           -       -\n"
        "a      running  1/4     0.1%      0 B        -       -          -           -       -\n"
        "web1   running  1/4        ?  2.0 MiB        -       -          -           -     9 B"
    )


def test_for_programs() -> None:
    assert as_dict(row("a", 12.34, 4096, exits=1.25, disk_read=2)) == {
        "name": "a",
        "condition": "running",
        "state": "running",
        "vcpus": 1,
        "max_vcpus": 4,
        "memory": 64 << 20,
        "cpu_percent": 12.3,
        "cpu_sec": 1.0,
        "memory_used": 4096,
        "exits_per_sec": 1.2,
        "disk_read_bytes_per_sec": 2,
        "disk_written_bytes_per_sec": None,
        "network_received_bytes_per_sec": None,
        "network_sent_bytes_per_sec": None,
        "error": None,
    }
