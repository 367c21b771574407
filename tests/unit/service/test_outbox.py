"""The outbox: a receiver that comes late or is deaf, one thread for all, and systemd-python itself with a full socket."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.datagrams import Listener
from support.journal_log import deliver_to, notification
from support.process import CHECKOUT

from vmservice.service.outbox import Channel, Outbox

TIMEOUT_SEC = 60.0

# Two receivers, both full. The real systemd-python is called as the outbox calls it, after the kernel had said that there is
# room: what is looked at is whether the rest of the interpreter runs on.
FULL_AFTER_ALL = """\
import os, socket, sys, threading, time
from vmservice.host import signals
from vmservice.service import outbox, sd_notify

address = sys.argv[1]
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(address)
os.environ["NOTIFY_SOCKET"] = address
filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
try:
    while True:
        filler.sendto(b"X=1", address)
except BlockingIOError:
    pass
signals.block(signals.SIGALRM)
signals.make_interrupting(signals.SIGALRM)
outbox._is_writable = lambda gauge: True
box = outbox.Outbox()
notifier = sd_notify.Notifier(print, box)
notifier.ready("running")
box.start()
longest, last, end = 0.0, time.monotonic(), time.monotonic() + 1.5
while last < end:
    time.sleep(0.001)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
print(f"longest {longest:.3f}")
manager.settimeout(60)
while b"READY=1" not in manager.recv(4096):
    pass
print("told")
box.close()
"""

# The real systemd-python again. The manager has its last word in its socket, and reads it later or, as "deaf", never.
LAST_WORD = """\
import os, socket, sys, threading, time
from vmservice.host import signals
from vmservice.service import outbox, sd_notify

address, is_deaf = sys.argv[1], sys.argv[2] == "deaf"
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind(address)
manager.settimeout(60)
if not is_deaf:
    outbox._PATIENCE_SEC = 60.0
os.environ["NOTIFY_SOCKET"] = address
signals.block(signals.SIGALRM)
signals.make_interrupting(signals.SIGALRM)
box = outbox.Outbox()
sd_notify.Notifier(print, box).status("the end")
ended = threading.Event()

def read():
    ended.wait(0.1)
    print(manager.recv(4096).decode())
    print("ended before" if ended.is_set() else "waits")
    text, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    print(text.decode())
    for fd in fds:
        os.close(fd)

reader = threading.Thread(target=read)
if not is_deaf:
    reader.start()
begin = time.monotonic()
box.close()
ended.set()
if is_deaf:
    print(f"{time.monotonic() - begin:.1f} s")
else:
    reader.join()
"""


def wait_for(what: object, condition: object) -> None:
    deadline = time.monotonic() + TIMEOUT_SEC
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_a_receiver_that_comes_late_gets_all_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "late")
    outbox = Outbox()
    channel = Channel(path, deliver_to(path, notification), limit=10, limit_chars=1000)
    outbox.add(channel)
    outbox.start()
    for number in range(3):
        channel.put({"N": str(number)})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(TIMEOUT_SEC)
        assert [receiver.recv(100) for _ in range(3)] == [b"N=0", b"N=1", b"N=2"]
    outbox.close()


def test_a_deaf_receiver_holds_up_no_other_one() -> None:
    with Listener() as deaf, Listener() as other:
        outbox = Outbox()
        stuck = Channel(deaf.path, deliver_to(deaf.path, notification), limit=1000, limit_chars=100_000)
        free = Channel(other.path, deliver_to(other.path, notification), limit=10, limit_chars=1000)
        outbox.add(stuck)
        outbox.add(free)
        outbox.start()
        for number in range(600):  # more than any socket takes
            stuck.put({"N": str(number)})
        free.put({"X": "1"})
        assert other.receive() == b"X=1"
        assert [deaf.receive() for _ in range(600)] == [b"N=%d" % number for number in range(600)]
        outbox.close()


def test_the_end_waits_for_a_deaf_receiver_for_a_second_only() -> None:
    with Listener() as deaf:
        outbox = Outbox()
        channel = Channel(deaf.path, deliver_to(deaf.path, notification), limit=1000, limit_chars=100_000)
        outbox.add(channel)
        for number in range(600):
            channel.put({"N": str(number)})
        begin = time.monotonic()
        outbox.close()
        assert 0.9 < time.monotonic() - begin < 20
        assert channel.take_left()[-1] == {"N": "599"}


def test_a_limit_in_characters() -> None:
    channel = Channel("/nowhere", lambda item: None, limit=1000, limit_chars=100, missing=lambda count: {"MISSING": str(count)})
    for _ in range(10):
        channel.put({"TEXT": "x" * 30})
    assert channel.take_left() == [{"TEXT": "x" * 30}] * 4 + [{"MISSING": "6"}]


def test_a_bug_of_ours_is_reported_and_the_end_is_not_held_up() -> None:
    with Listener() as receiver:
        outbox = Outbox()
        reported: list[Exception] = []
        outbox.on_bug(reported.append)

        def fail(_item: dict[str, str]) -> None:
            raise ValueError("a bug")

        channel = Channel(receiver.path, fail, limit=10, limit_chars=1000)
        outbox.add(channel)
        outbox.start()
        channel.put({"X": "1"})
        wait_for("the report", lambda: reported)
        assert str(reported[0]) == "a bug"
        begin = time.monotonic()
        outbox.close()
        assert time.monotonic() - begin < 20


def test_an_item_that_can_never_be_sent_is_counted_and_the_next_one_goes() -> None:
    with Listener() as receiver:
        outbox = Outbox()
        send = deliver_to(receiver.path, notification)

        def deliver(item: dict[str, str]) -> None:
            if "BAD" in item:
                raise OSError(errno.EMSGSIZE, "Message too long")
            send(item)

        channel = Channel(receiver.path, deliver, limit=10, limit_chars=1000, missing=lambda count: {"MISSING": str(count)})
        outbox.add(channel)
        channel.put({"BAD": "1"})
        channel.put({"GOOD": "1"})
        outbox.close()
        assert receiver.waiting() == [b"GOOD=1", b"MISSING=1"]


def test_nothing_to_say_is_no_thread() -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    outbox = Outbox()
    outbox.add(Channel("/nowhere", lambda item: None, limit=1, limit_chars=1))
    outbox.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before


def test_systemd_python_in_a_full_socket_holds_nobody_for_long(tmp_path: Path) -> None:
    """It waits there with the interpreter's lock held: without the timer, nothing of ours would run again."""
    pytest.importorskip("systemd.daemon", reason="python3-systemd is not installed")
    done = subprocess.run(
        [sys.executable, "-c", FULL_AFTER_ALL, str(tmp_path / "notify")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    longest, told = done.stdout.splitlines()[-2:]
    assert float(longest.split()[1]) < 15
    assert told == "told"


def end_with(reader: str, folder: Path) -> list[str]:
    """Lines of LAST_WORD."""
    pytest.importorskip("systemd.daemon", reason="python3-systemd is not installed")
    command = [sys.executable, "-c", LAST_WORD, str(folder / "notify"), reader]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=90, check=False)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_end_waits_until_the_manager_has_read_the_last_word(tmp_path: Path) -> None:
    """systemd may otherwise find no unit any more for the status that a VM ends with."""
    assert end_with("reads", tmp_path) == ["STATUS=the end", "waits", "BARRIER=1"]


def test_the_end_waits_a_second_at_most_for_a_manager_that_does_not_read(tmp_path: Path) -> None:
    (took,) = end_with("deaf", tmp_path)
    assert 0.9 < float(took.split()[0]) < 20
