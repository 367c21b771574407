"""What `make bench` keeps, shows and says when parts of it fail. Nothing is measured here."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from bench import bench, disks, guest_link, networks, qcow2, rows, started
from bench.figures import FIGURE_AIMS, RATIO_AIMS, Figures
from bench.guest_link import GuestLink
from bench.idle_vms import CPU_ROW, MEMORY_ROW, SWITCHES_ROW
from lab.channel import HostDied

ROW, OTHER_ROW = "VM exit, µs", "serial, KiB/s"


def line(row: str, side: str, figure: float) -> str:
    return json.dumps({"row": row, "side": side, "figure": figure}) + "\n"


def boots(*places: Callable[[str], None]) -> Callable[[], contextlib.AbstractContextManager[bench.Place]]:
    """Each boot gives the next of `places`."""
    left = list(places)

    @contextlib.contextmanager
    def boot() -> Iterator[bench.Place]:
        yield left.pop(0)

    return boot


def test_a_figure_is_shown_and_kept_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures()
    text = line(ROW, "vmservice", 2.5) + line(ROW, "peer", 2.0)
    figures.take(text[:-10])
    assert capsys.readouterr().out == f"bench: {ROW}: vmservice 2.50\n"
    figures.take(text[-10:] + "a word of a program\n")
    assert capsys.readouterr().out == f"bench: {ROW}: peer 2.00\na word of a program\n"
    assert figures.samples == {ROW: {"vmservice": [2.5], "peer": [2.0]}}
    assert "| VM exit, µs | 2.50 (2.50–2.50) | 2.00 (2.00–2.00) | 1.25 | 1.15 |" in figures.table()
    assert figures.verdict() == "every row was measured"


def test_a_row_that_fails_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> float:
        raise rows.BenchError("it ended")

    def measured() -> float:
        return 7.0

    rows.in_turn({ROW: {"vmservice": measured, "peer": breaks}, OTHER_ROW: {"vmservice": measured, "peer": measured}}, 2)
    figures = Figures()
    figures.take(capsys.readouterr().out)
    assert figures.samples == {OTHER_ROW: {"vmservice": [7.0, 7.0], "peer": [7.0, 7.0]}}
    assert figures.failures == {ROW: "BenchError: it ended"}
    assert "it ended" in figures.verdict()


def test_a_row_that_fails_late_keeps_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    ours = iter((1.0, 1.0, 2.0))
    rows.in_turn({ROW: {"vmservice": lambda: next(ours), "peer": lambda: 1.0}}, 5)
    figures = Figures()
    figures.take(capsys.readouterr().out)
    assert figures.samples == {ROW: {"vmservice": [1.0, 2.0], "peer": [1.0, 1.0]}}
    assert list(figures.failures) == [ROW]


def test_a_subject_that_fails_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(runs: int) -> None:
        rows.note(ROW, "peer", runs)
        raise OSError(5, "no disk")

    rows.run_subjects({"first": breaks, "second": lambda runs: rows.note(OTHER_ROW, "vmservice", runs)}, 3, [])
    figures = Figures()
    figures.take(capsys.readouterr().out)
    assert figures.samples == {ROW: {"vmservice": [], "peer": [3.0]}, OTHER_ROW: {"vmservice": [3.0], "peer": []}}
    assert list(figures.failures) == ["first"]
    assert f"| {ROW} | lost | 3.00 (3.00–3.00) | – |" in figures.table()


def test_a_host_that_dies_costs_no_figure_and_its_subject_has_another_try() -> None:
    figures, seen = Figures(), list[str]()

    def dies_in_resize(subject: str) -> None:
        seen.append(subject)
        figures.take(line(ROW, "peer", 1.0))
        if subject == "resize":
            figures.take('{"row": "half a li')
            raise HostDied("the lab's host ended")

    def lives(subject: str) -> None:
        seen.append(subject)
        figures.take(line(OTHER_ROW, "peer", 2.0))

    bench.measure(figures, ["start", "resize", "console"], boots(dies_in_resize, lives))
    assert seen == ["start", "resize", "resize", "console"]
    assert figures.samples == {ROW: {"vmservice": [], "peer": [1.0, 1.0]}, OTHER_ROW: {"vmservice": [], "peer": [2.0, 2.0]}}
    assert figures.failures == {}


def test_a_host_that_dies_twice_in_a_subject_is_that_subjects_failure() -> None:
    figures = Figures()

    def dies(subject: str) -> None:
        if subject == "start":
            raise HostDied("the lab's host ended")

    bench.measure(figures, ["start", "resize"], boots(dies, dies, dies))
    assert figures.failures == {"start": "its host died twice: the lab's host ended"}


def test_without_a_host_every_subject_of_the_part_fails() -> None:
    figures = Figures()

    def boot() -> contextlib.AbstractContextManager[bench.Place]:
        raise HostDied("the lab's host did not come up in 180 s")

    bench.measure(figures, ["start", "resize"], boot)
    assert list(figures.failures) == ["start", "resize"]


def test_the_last_line_and_the_status_say_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def native(figures: Figures, runs: int) -> Iterator[bench.Place]:
        def place(subject: str) -> None:
            figures.take(line(ROW, "vmservice", runs))
            if subject == "pause":
                raise RuntimeError("native.py ended with 1")

        yield place

    monkeypatch.setitem(bench.PARTS, "native", (native, bench.NATIVE_SUBJECTS))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--runs", "2", "--only", "native"])
    assert bench.main() == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "bench: FAILED: pause (RuntimeError: native.py ended with 1)"
    assert shown[-2].startswith(f"| {ROW} | 2.00")

    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "native", "start", "exit"])
    assert bench.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bench: every row was measured"


def test_what_is_measured_so_far_is_shown_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.contextmanager
    def native(figures: Figures, _runs: int) -> Iterator[bench.Place]:
        def place(_subject: str) -> None:
            figures.take(line(ROW, "vmservice", 4.0))
            raise KeyboardInterrupt

        yield place

    monkeypatch.setitem(bench.PARTS, "native", (native, bench.NATIVE_SUBJECTS))
    monkeypatch.setattr(sys, "argv", ["bench.py", "--only", "native"])
    assert bench.main() == 130
    assert f"| {ROW} | 4.00" in capsys.readouterr().out


def test_the_idle_rows_have_their_aims() -> None:
    assert {CPU_ROW, SWITCHES_ROW} == FIGURE_AIMS.keys()
    assert MEMORY_ROW in RATIO_AIMS


@pytest.mark.parametrize(("main", "copied"), [("native.py", bench.IN_CONTAINER), ("guest.py", bench.IN_LAB)])
def test_what_measures_is_whole_where_it_runs(main: str, copied: tuple[str, ...]) -> None:
    wanted, seen = [main], set[str]()
    while wanted:
        seen.add(name := wanted.pop())
        text = (bench.HERE / name).read_text()
        names = re.findall(r"^from bench\.(\w+) import", text, re.MULTILINE)
        for listed in re.findall(r"^from bench import (.+)$", text, re.MULTILINE):
            names += listed.split(", ")
        wanted += {f"{name}.py" for name in names} - seen
    assert seen == set(copied)


def test_qcow2_rows_have_their_aims() -> None:
    class Measured:
        def job(self, number: int) -> tuple[float, float, float]:
            return 100.0, 1000.0 + number, 1.0

    told: dict[str, float] = {}
    disks.tell_jobs(Measured(), qcow2.JOBS, lambda row, figure: told.update({f"qcow2: {row}": figure}))  # type: ignore[arg-type]
    assert {row for row in told if row.endswith("/s")} == {row for row in RATIO_AIMS if row.startswith("qcow2: ")}
    assert told["qcow2: random write, 4 KiB, depth 32, requests/s"] == 1000.0 + len(qcow2.JOBS) - 1
    assert disks.script(qcow2.JOBS.values()).count(b"fio begins") == len(qcow2.JOBS)


def connect_guest(link: GuestLink) -> subprocess.Popen[bytes]:
    """Does with a connection what bench_init.sh has the guest do, by this machine's programs."""
    job = re.search(r"<< 'END'\n(.*?)END\n", (bench.HERE / "bench_init.sh").read_text(), re.DOTALL)
    assert job is not None
    with socket.create_connection(("127.0.0.1", link.port)) as connection:
        return subprocess.Popen(["sh", "-c", job[1]], stdin=connection.fileno(), stdout=connection.fileno())


def test_a_guests_network_is_measured_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("WARM_UP_SEC", 0.02), ("TRANSFER_SEC", 0.1), ("ECHO_SEC", 0.1)):
        monkeypatch.setattr(guest_link, name, seconds)
    clock = iter((3.0, 5.0, 7.0, 8.0))
    end = networks.End("10.0.0.2", "10.0.0.1", "127.0.0.1")
    with contextlib.ExitStack() as guests, contextlib.closing(end.link) as link:
        assert end.cmdline.endswith(f" link=10.0.0.2,10.0.0.1,127.0.0.1,{link.port}")
        assert not link.is_ready(timeout_sec=0.01)
        for _ in range(4):  # after each measuring the next is waited for
            guests.callback(connect_guest(link).wait, 20)  # each ends with its connection
        assert link.is_ready(timeout_sec=20.0)
        for job, spent in (("send", 2.0), ("take", 1.0)):
            rate, cost = link.throughput(job, lambda: next(clock))
            moved_gib = spent / cost
            assert rate * 0.05 < moved_gib * 1024 < rate * 2.0  # of about a tenth of a second
        assert 0.0 < link.echo_us() < 1e5


def test_a_guest_that_hangs_up_is_an_error() -> None:
    with contextlib.closing(GuestLink("127.0.0.1")) as link:
        with socket.create_connection(("127.0.0.1", link.port)):
            link.wait()
        with pytest.raises(ConnectionError):
            link.echo_us()


def test_what_serves_a_machine_is_counted_and_ends_with_it() -> None:
    busy = "while :; do :; done"
    server = subprocess.Popen(["sh", "-c", busy])
    machine = started.Command(["sleep", "60"], [server])
    try:
        assert started.host_cpu_sec(machine.pids[:1]) < 0.1
        deadline = time.monotonic() + 20.0
        while started.host_cpu_sec(machine.pids) < 0.05:
            assert time.monotonic() < deadline
        assert machine.status() == ""
        server.kill()
        server.wait()
        assert machine.status() == f"{['sh', '-c', busy]!r} ended with -9"
    finally:
        machine.end()
    assert machine.status() == "['sleep', '60'] ended with -9"


def test_network_rows_have_their_aims() -> None:
    rows_aimed = {row for row in RATIO_AIMS if row.startswith("network, ")}
    assert {row.split(": ")[0] for row in rows_aimed} == {f"network, {pair}" for pair in networks.PAIRS}
    for row in rows_aimed:
        assert row.endswith((": guest to host, MiB/s", ": host to guest, MiB/s", ": 64 bytes there and back, µs"))
