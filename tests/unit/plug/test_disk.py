"""A disk with its threads, worked by a driver: what was answered is in the image, whatever the host and the driver do."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.disks import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    OK,
    OUT,
    TIMEOUT_SEC,
    UNSUPP,
    WRITE_ZEROES,
    Disk,
    header,
    section,
    segment,
    waiting,
)
from support.virtqueue import NEXT, WRITE, DriverQueue

from vmservice.config.load import load_config
from vmservice.errors import ConfigError, HostError
from vmservice.host.consoles.mover import Mover
from vmservice.host.storage import Image
from vmservice.plug import disk as disk_plug
from vmservice.plug.backend import Backends, Host

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * 4 * 1024)
    return path


@pytest.fixture
def make(file: Path) -> Iterator[Callable[..., Disk]]:
    made: list[Disk] = []

    def make(**keys: Any) -> Disk:
        made.append(Disk(section(file, **keys)))
        return made[-1]

    yield make
    for disk in made:
        disk.close()


@pytest.fixture(params=["writeback", "direct"])
def disk(request: pytest.FixtureRequest, make: Callable[..., Disk]) -> Disk:
    disk = make(is_direct=request.param == "direct", serial="root")
    disk.start()
    return disk


def test_each_request(disk: Disk, file: Path) -> None:
    assert disk.read(8, 4096) == file.read_bytes()[4096:8192] + OK
    assert disk.write(8, b"w" * 4096) == OK
    assert file.read_bytes()[4096:8192] == b"w" * 4096
    assert disk.ask([header(FLUSH)], [1]) == OK
    assert disk.ask([header(GET_ID)], [20, 1]) == b"root" + bytes(16) + OK
    assert disk.ask([header(DISCARD), segment(8, 8)], [1]) == OK
    assert file.read_bytes()[4096:8192] == bytes(4096)
    assert disk.ask([header(WRITE_ZEROES), segment(16, 8, 1)], [1]) == OK
    assert file.read_bytes()[8192:12288] == bytes(4096)
    assert disk.ask([header(77)], [1]) == UNSUPP
    assert disk.read(2048, 512)[-1:] == IOERR
    assert disk.slot.warnings == []


def test_a_disk_that_can_only_be_read(make: Callable[..., Disk], file: Path) -> None:
    os.chmod(file, 0o400)
    before = file.read_bytes()
    disk = make(readonly=True)
    disk.start()
    assert disk.read(0, 512) == before[:512] + OK
    assert disk.write(0, bytes(512)) == IOERR
    assert disk.ask([header(FLUSH)], [1]) == OK
    assert file.read_bytes() == before


def test_a_driver_that_never_flushes(make: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    pwritev = os.pwritev

    def note(fd: int, views: Any, offset: int, flags: int) -> int:
        asked.append(flags)
        return pwritev(fd, views, offset, flags)

    monkeypatch.setattr(os, "pwritev", note)
    disk = make()
    disk.start(features=0)
    assert disk.write(0, bytes(512)) == OK
    disk.start()
    assert disk.write(0, bytes(512)) == OK
    assert asked == [os.RWF_DSYNC, 0]


def test_what_it_has_done_is_counted(make: Callable[..., Disk]) -> None:
    disk = make()
    disk.start()
    assert not any(disk.plug.stats().values())
    for sector in (0, 8, 4096):
        disk.read(sector, 4096)
    disk.write(0, bytes(512))
    disk.ask([header(FLUSH)], [1])
    disk.ask([header(DISCARD), segment(0, 8)], [1])
    disk.ask([header(GET_ID)], [20, 1])
    counted = {"reads": 2, "read_bytes": 8192, "writes": 1, "written_bytes": 512, "flushes": 1, "discards": 1, "errors": 1}
    assert disk.plug.stats() == counted


def test_a_simulated_machine_needs_no_image(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text(
        '[kernel]\npath = "k"\n[[disk]]\nformat = "raw"\npath = "none"\n[serial]\nmode = "null"\n[console]\nmode = "null"\n'
    )
    config = load_config("demo", str(tmp_path / "demo.toml"))
    mover = Mover()
    log: Any = SimpleNamespace(info=lambda text: None, warning=lambda text: None)
    with pytest.raises(ConfigError, match=r'disk disk0: path is ".*/none", which does not exist'):
        Backends(config, Host("demo", log, mover, []))
    backends = Backends(config, Host("demo", log, mover, [], is_simulated=True))
    assert [console.label for console in backends.consoles] == ["serial", "hvc"]
    assert "disk" not in [kind for kind, _, _ in backends.details()]
    backends.close()
    mover.close()


def test_what_the_bus_shows_of_it(make: Callable[..., Disk], file: Path) -> None:
    disk = make(readonly=True, serial="s")
    said = disk_plug.details(disk.section, disk.backend)
    assert said == {"root": {"path": str(file), "format": "raw", "readonly": True, "ephemeral": False, "serial": "s"}}


FAILURES = {
    "preadv": (IN, errno.EIO, "cannot be read, which the guest is told: Input/output error"),
    "pwritev": (OUT, errno.ENOSPC, "cannot be written, which the guest is told: No space left on device"),
    "fdatasync": (FLUSH, errno.EIO, "cannot be flushed, which the guest is told: Input/output error"),
}


@pytest.mark.parametrize("call", FAILURES)
def test_an_error_of_the_host_is_the_requests(
    make: Callable[..., Disk], file: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kind, number, words = FAILURES[call]
    disk = make()
    disk.start()

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    readable = [header(kind), bytes(512)] if kind == OUT else [header(kind)]
    for _ in range(3):
        assert disk.ask(readable, [512, 1] if kind == IN else [1])[-1:] == IOERR
    assert disk.slot.warnings == [f"disk root: {file} {words}"], "one a minute"
    monkeypatch.undo()
    assert disk.read(0, 512)[-1:] == OK, "the disk is there as before"


def test_a_full_file_system(tmp_path: Path, make: Callable[..., Disk], file: Path) -> None:
    """Of a sparse image there may be no room for what the guest writes; what it has written before stays."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    from support.tmpfs import small_tmpfs

    with small_tmpfs(tmp_path / "small", 256 << 10) as folder:
        image = folder / "disk.raw"
        with open(image, "wb") as sparse:
            sparse.truncate(MIB)
        disk = Disk(section(image))
        try:
            disk.start()
            answers = [disk.write(sector, b"\xaa" * 32768) for sector in range(0, 2048, 64)]
            good = answers.count(OK)
            assert answers == [OK] * good + [IOERR] * (32 - good)
            assert 0 < good < 32
            assert image.read_bytes()[: good * 32768] == b"\xaa" * (good * 32768)
            assert "No space left on device" in disk.slot.warnings[0]
        finally:
            disk.close()


def test_an_image_that_somebody_cuts_short(disk: Disk, file: Path) -> None:
    os.truncate(file, MIB // 2)
    assert disk.read(0, 4096)[-1:] == OK
    assert disk.read(1024, 4096)[-1:] == IOERR
    assert disk.read(1016, 8192)[-1:] == IOERR
    disk.plug.reconfigure(disk.section)
    assert "is smaller than the guest knows" in disk.slot.warnings[-1]
    assert int.from_bytes(disk.driver.transport.read_config(0, 8), "little") == 2048


def test_an_image_that_has_grown_is_larger_at_the_next_reload(disk: Disk, file: Path) -> None:
    os.truncate(file, 2 * MIB)
    assert disk.read(2048, 512)[-1:] == IOERR
    disk.plug.reconfigure(disk.section)
    assert int.from_bytes(disk.driver.transport.read_config(0, 8), "little") == 4096
    assert disk.driver.interrupt.configs == 1
    assert disk.read(2048, 512) == bytes(512) + OK
    disk.plug.reconfigure(disk.section)
    assert disk.driver.interrupt.configs == 1


def test_a_next_machine_has_the_same_image(disk: Disk, file: Path) -> None:
    """After a reset of the guest: the image stays open, and with it locked."""
    from support.disks import DiskSlot

    assert disk.write(0, b"1" * 512) == OK
    disk.plug.close()
    os.truncate(file, 2 * MIB)
    slot = DiskSlot()
    plug = disk_plug.build(disk.section, disk.backend, slot)  # type: ignore[arg-type]
    assert slot.driver is not None
    assert int.from_bytes(slot.driver.transport.read_config(0, 8), "little") == 4096
    plug.close()
    slot.memory.close()
    disk.plug = disk_plug.build(disk.section, disk.backend, disk.slot)  # type: ignore[arg-type]


def test_a_pause_has_everything_on_the_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fdatasync = os.fdatasync

    def note(fd: int) -> None:
        flushed.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", note)
    disk.plug.pause()
    assert flushed == [], "nothing was written"
    disk.plug.resume()
    assert disk.write(0, bytes(512)) == OK
    disk.plug.pause()
    disk.plug.pause()
    assert flushed == [disk.backend.fd]
    disk.queues[0].add([header(IN)], [512, 1])
    disk.kick()
    assert disk.driver.transport.state.queues[0].next_available == 1
    disk.plug.resume()
    assert disk.answers(1)[0][1] == 513


def test_a_flush_that_the_host_cannot_do_holds_no_pause_up_for_ever(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr("vmservice.plug.disk.FLUSH_TIMEOUT_SEC", 0.05)
    monkeypatch.setattr(os, "fdatasync", lambda fd: gate.wait(TIMEOUT_SEC))
    assert disk.write(0, bytes(512)) == OK
    disk.plug.pause()
    assert "paused, and the host is still writing" in disk.slot.warnings[-1]
    disk.plug.resume()
    assert disk.read(0, 512)[-1:] == OK
    gate.set()
    monkeypatch.undo()


class Gate:
    """Holds up what the pool does until it is opened."""

    def __init__(self, image: Image, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.waiting = threading.Semaphore(0)
        work = getattr(image, call)

        def wait(*arguments: Any) -> None:
            self.waiting.release()
            assert self.opened.wait(TIMEOUT_SEC)
            work(*arguments)

        monkeypatch.setattr(image, call, wait)

    def wait(self) -> None:
        assert self.waiting.acquire(timeout=TIMEOUT_SEC)


@pytest.fixture
def held(make: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch) -> tuple[Disk, Gate]:
    """A disk whose page cache has nothing, and whose reads wait."""
    disk = make()
    monkeypatch.setattr(disk.backend, "peek", lambda *_: False)
    gate = Gate(disk.backend, "read", monkeypatch)
    disk.start()
    return disk, gate


def test_one_that_waits_holds_nobody_up(held: tuple[Disk, Gate], file: Path) -> None:
    disk, gate = held
    for number in range(3):
        disk.queues[0].add([header(IN, number)], [512, 1])
    disk.kick()
    for _ in range(3):
        gate.wait()
    assert disk.write(100, b"x" * 512) == OK
    assert disk.ask([header(FLUSH)], [1]) == OK, "a flush waits for nothing that is not done"
    gate.opened.set()
    assert sorted(data for _, _, data in disk.answers(3)) == sorted(
        file.read_bytes()[512 * number : 512 * number + 512] + OK for number in range(3)
    )


def test_a_stop_with_32_in_flight_has_them_done(held: tuple[Disk, Gate], file: Path) -> None:
    disk, gate = held
    for number in range(32):
        disk.queues[0].add([header(IN, number)], [512, 1])
    disk.kick()
    gate.wait()
    threading.Timer(0.05, gate.opened.set).start()
    disk.plug.pause()
    state = disk.driver.transport.state.queues[0]
    assert (state.next_available, state.next_used, disk.queues[0].used_index()) == (32, 32, 32)
    disk.queues[0].take_used()
    disk.plug.resume()
    assert disk.read(0, 512)[-1:] == OK


def test_a_stop_that_takes_too_long_changes_nothing(held: tuple[Disk, Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    disk, gate = held
    monkeypatch.setattr("vmservice.devices.virtio.transport.STOP_TIMEOUT_SEC", 0.05)
    disk.queues[0].add([header(IN)], [512, 1])
    disk.kick()
    gate.wait()
    with pytest.raises(HostError, match="requests of the device root wait for the host"):
        disk.plug.pause()
    assert disk.write(0, bytes(512)) == OK, "it is served as before"
    gate.opened.set()
    assert len(disk.answers(1)) == 1
    monkeypatch.undo()


def test_a_lie_waits_for_what_is_in_flight(held: tuple[Disk, Gate]) -> None:
    """Its buffers belong to the host until the last request is done; then the driver has its reset."""
    disk, gate = held
    disk.queues[0].add([header(IN)], [512, 1])
    disk.kick()
    gate.wait()
    disk.queues[0].set_available_index(0x7000)
    disk.kick()
    for _ in waiting():
        disk.driver.run_posted()
        if disk.driver.is_broken:
            break
    assert disk.driver.is_broken
    with disk.slot.lock:
        disk.driver.transport.write_status(0)
        assert disk.driver.transport.status != 0, "the reset waits"
    gate.opened.set()
    disk.start()
    assert disk.read(0, 512)[-1:] == OK


def test_no_more_in_flight_than_the_virtqueue_has_entries(held: tuple[Disk, Gate]) -> None:
    """A driver may offer the same descriptors again and again before it gets them back."""
    disk, gate = held
    queue, state = disk.queues[0], disk.driver.transport.state.queues[0]
    head = queue.add([header(IN)], [512, 1])
    for taken in (200, 256):
        for _ in range(200):
            queue.make_available(head)
        disk.kick()
        for _ in waiting():
            if state.next_available == taken + (taken == 200):
                break
        assert state.next_available == taken + (taken == 200)
    disk.kick()
    gate.wait()
    assert state.next_available == 256, "the rest waits in the ring"
    gate.opened.set()
    for _ in waiting():
        if queue.used_index() == 401:
            break
    assert queue.used_index() == 401


def test_random_requests_beside_a_model(file: Path, make: Callable[..., Disk], disk: Disk) -> None:
    """Each answer is that of an array of bytes; requests that are in flight together do not touch the same sectors."""
    rng, model = random.Random(11), bytearray(file.read_bytes())
    for _ in range(300):
        expected: dict[int, bytes] = {}
        for place in rng.sample(range(0, 2048, 64), rng.randrange(1, 8)):
            sectors = rng.randrange(1, 17)
            start, end = 512 * place, 512 * (place + sectors)
            kind = rng.choice((IN, IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES))
            indirect = rng.random() < 0.5
            if kind == IN:
                head = disk.queues[0].add([header(IN, place)], [512] * sectors + [1], indirect=indirect)
                expected[head] = bytes(model[start:end]) + OK
                continue
            data = rng.randbytes(end - start) if kind == OUT else segment(place, sectors) if kind != FLUSH else b""
            head = disk.queues[0].add(
                [header(kind, place if kind == OUT else 0), data] if data else [header(kind)], [1], indirect=indirect
            )
            expected[head] = OK
            if kind == OUT:
                model[start:end] = data
            elif kind in (DISCARD, WRITE_ZEROES):
                model[start:end] = bytes(end - start)
        disk.kick()
        assert {head: data for head, _, data in disk.answers(len(expected))} == expected
    assert file.read_bytes() == bytes(model)
    assert disk.slot.warnings == []


@pytest.mark.parametrize("is_direct", [False, True])
def test_whatever_is_in_the_virtqueue_the_disk_lives_on(make: Callable[..., Disk], file: Path, is_direct: bool) -> None:
    """50,000 each: requests that are honest, nearly honest, and not at all, while earlier ones are in flight."""
    rng, disk = random.Random(5), make(is_direct=is_direct, queues=2)
    disk.start()
    broken = answered = 0
    for number in range(50_000):
        queue = rng.choice(disk.queues)
        scribble(queue, rng)
        if number % 4 == 0:
            disk.kick(rng.randrange(2))
        if number % 256 == 0:
            settle(disk)
        if number % 16 == 0:
            disk.driver.run_posted()
        if disk.driver.is_broken:
            broken += 1
            answered += sum(state.next_used for state in disk.driver.transport.state.queues)
            disk.start()
    disk.start()
    assert disk.read(0, 512)[-1:] == OK
    assert not [text for text in disk.slot.warnings if "internal error" in text]
    assert file.stat().st_size == MIB
    assert broken > 10
    assert answered > 500


def settle(disk: Disk) -> None:
    """All that was made available is answered, or the driver is told to reset the device."""
    for index in range(len(disk.queues)):
        disk.kick(index)
    for _ in waiting():
        disk.driver.run_posted()
        if disk.driver.is_broken or all(queue.used_index() == queue.available_index for queue in disk.queues):
            return
    raise AssertionError("the disk neither answers nor asks for a reset")


def scribble(queue: DriverQueue, rng: random.Random) -> None:
    """A request of three descriptors, of which now and then something is wrong."""
    first = rng.randrange(0, 240, 3)
    kind = rng.choice((IN, IN, OUT, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, rng.randrange(1 << 32)))
    sector = rng.choice((rng.randrange(2048), rng.randrange(2048), rng.randrange(1 << 64)))
    size = rng.choice((512, 1024, 4096, 16, 20, 513, 0x10000, rng.randrange(1 << 21)))
    data = queue.place(segment(sector, rng.randrange(64), rng.randrange(2)).ljust(512, b"s"))
    queue.describe(first, queue.place(header(kind, sector)), rng.choice((16,) * 20 + (15, 17, 0)), NEXT, first + 1)
    write = WRITE if kind in (IN, GET_ID) else 0
    queue.describe(first + 1, data if rng.random() < 0.98 else rng.randrange(1 << 40), size, NEXT | write, first + 2)
    queue.describe(first + 2, data + 508, 1, WRITE if rng.random() < 0.99 else 0)
    queue.make_available(first if rng.random() < 0.995 else rng.randrange(1 << 16))


def test_a_disk_of_which_nothing_is_kept(make: Callable[..., Disk], file: Path) -> None:
    os.chmod(file, 0o400)
    before = file.read_bytes()
    disk = make(ephemeral=True)
    disk.start()
    assert disk.write(1, b"x" * 512) == OK
    assert disk.read(0, 2048) == before[:512] + b"x" * 512 + before[1024:2048] + OK
    disk.start()  # a reset of the guest
    assert disk.read(1, 512) == b"x" * 512 + OK
    assert file.read_bytes() == before
    assert make(ephemeral=True).backend.size_bytes == MIB


def test_an_image_in_another_format_is_said(make: Callable[..., Disk], file: Path) -> None:
    with open(file, "r+b") as image:
        image.write(b"QFI\xfb")
    assert "begins as a qcow2 image does" in make().log[0]
