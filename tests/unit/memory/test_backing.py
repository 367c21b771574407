"""What backs guest memory: what it is made of, and that whatever the host cannot give is said before a guest runs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import pytest
from support.process import CHECKOUT
from support.skips import HUGE_PAGES

from vmservice.errors import ConfigError, HostError
from vmservice.memory import backing, guest_memory
from vmservice.memory.guest_memory import GuestMemory

PAGE = mmap.PAGESIZE
HIGH = 4 << 30
MIB = 1 << 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system or reserve huge pages")


def resident_bytes(mapping: mmap.mmap) -> int:
    """How much of it is present, by mincore(2)."""
    present = ctypes.create_string_buffer(len(mapping) // PAGE)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address_of(mapping)), ctypes.c_size_t(len(mapping)), present) == 0
    return sum(byte & 1 for byte in present.raw) * PAGE


def page_kib(mapping: mmap.mmap) -> int:
    """The size of its pages."""
    address = address_of(mapping)
    for area in re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) .*?^KernelPageSize: *(\d+) kB",
        Path("/proc/self/smaps").read_text(),
        re.MULTILINE | re.DOTALL,
    ):
        if int(area[1], 16) <= address < int(area[2], 16):
            return int(area[3])
    raise AssertionError("it is not mapped")


def address_of(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE


def test_anonymous_memory_is_zero_and_costs_nothing_until_it_is_touched() -> None:
    memory = backing.allocate([(0, 64 * MIB)])
    assert memory.read(0, PAGE) == bytes(PAGE)
    assert resident_bytes(memory.regions[0].mapping) <= 2 * MIB  # the page that was read, huge at most
    memory.close()


def test_prefaulted_memory_is_all_there() -> None:
    memory = backing.allocate([(0, 8 * MIB), (HIGH, 4 * MIB)], prefault=True)
    assert [resident_bytes(region.mapping) for region in memory.regions] == [8 * MIB, 4 * MIB]
    memory.close()


def test_memory_that_cannot_be_prefaulted_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "_MADV_POPULATE_WRITE", 0x7FFF)
    before = mapped_bytes()
    with pytest.raises(HostError, match=r"^cannot prefault 4194304 bytes of guest memory \(it takes Linux 5\.14\): Invalid"):
        backing.allocate([(0, 4 * MIB)], prefault=True)
    assert mapped_bytes() < before + 4 * MIB


def test_memory_that_the_host_cannot_map_leaves_nothing_mapped() -> None:
    with pytest.raises(HostError, match=r"cannot map \d+ bytes of guest memory"):
        backing.allocate([(0, PAGE), (HIGH, 1 << 60)])


# A file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.touch()
    return path


def test_each_region_has_its_own_part_of_the_file(file: Path) -> None:
    """Cloud Hypervisor of December 2019 mapped every region at offset 0: two regions showed the same bytes."""
    memory = backing.allocate([(0, PAGE), (HIGH, PAGE)], file=str(file))
    memory.write(0, b"low")
    memory.write(HIGH, b"high")
    assert memory.read(0, 4) == b"low\0"
    assert file.stat().st_size == 2 * PAGE
    assert file.read_bytes()[PAGE : PAGE + 4] == b"high"
    memory.close()


def test_a_file_is_shared_both_ways(file: Path) -> None:
    memory = backing.allocate([(0, 2 * PAGE)], file=str(file))
    with file.open("r+b") as other:
        other.seek(PAGE)
        other.write(b"from outside")
    assert memory.read(PAGE, 12) == b"from outside"
    memory.close()


def test_two_vms_that_start_together_on_one_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second opens the empty file, then the first takes it. What the refused one put back was the size from before."""
    real_lock, first = backing._lock, list[GuestMemory]()

    def overtaken(fd: int, path: str) -> None:
        monkeypatch.setattr(backing, "_lock", real_lock)
        first.append(backing.allocate([(0, 4 * MIB)], file=path))
        first[0].write(2 * MIB, b"of the first VM")
        real_lock(fd, path)

    monkeypatch.setattr(backing, "_lock", overtaken)
    with pytest.raises(HostError, match="is the memory of another VM that runs"):
        backing.allocate([(0, 8 * MIB)], file=str(file))
    assert file.stat().st_size == 4 * MIB
    assert first[0].read(2 * MIB, 15) == b"of the first VM"
    assert not first[0].is_cut_short()
    first[0].close()


def test_its_room_is_kept_whatever_the_guest_lends_back(file: Path) -> None:
    """A balloon made holes in the file; on a full file system the guest's next touch then ended the VMM by SIGBUS."""
    memory = backing.allocate([(0, 4 * MIB)], file=str(file))
    memory.write(MIB, b"x")
    memory.discard(MIB, 2 * MIB)
    assert file.stat().st_blocks * 512 >= 4 * MIB
    memory.close()


def test_what_takes_long_tells_of_its_progress(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_memory, "_PIECE_BYTES", MIB)
    told: list[str] = []
    backing.allocate([(0, 4 * MIB + PAGE)], file=str(file), progress=lambda: told.append("room")).close()
    assert told == ["room"] * 5
    backing.allocate([(0, 2 * MIB), (HIGH, MIB)], prefault=True, progress=lambda: told.append("page")).close()
    assert told[5:] == ["page"] * 3


def test_its_room_is_taken_at_the_start(file: Path) -> None:
    memory = backing.allocate([(0, 4 * MIB)], file=str(file))
    assert file.stat().st_blocks * 512 >= 4 * MIB
    memory.close()


def test_a_file_that_is_too_small_is_grown_and_a_larger_one_keeps_its_end(file: Path) -> None:
    file.write_bytes(b"x" * PAGE)
    backing.allocate([(0, 2 * PAGE)], file=str(file)).close()
    assert file.read_bytes() == bytes(2 * PAGE)
    file.write_bytes(b"x" * 3 * PAGE)
    backing.allocate([(0, 2 * PAGE)], file=str(file)).close()
    assert file.read_bytes() == bytes(2 * PAGE) + b"x" * PAGE


def test_a_guest_does_not_see_what_the_one_before_left(file: Path) -> None:
    memory = backing.allocate([(0, PAGE), (HIGH, PAGE)], file=str(file))
    memory.write(HIGH, b"a secret")
    memory.close()
    memory = backing.allocate([(0, PAGE), (HIGH, PAGE)], file=str(file))
    assert memory.read(HIGH, PAGE) == bytes(PAGE)
    memory.close()


def test_two_guests_do_not_get_one_file(file: Path) -> None:
    memory = backing.allocate([(0, PAGE)], file=str(file))
    memory.write(0, b"mine")
    with pytest.raises(HostError, match=r"/memory, which memory.file names, is the memory of another VM that runs$"):
        backing.allocate([(0, 2 * PAGE)], file=str(file))
    assert (memory.read(0, 4), file.stat().st_size) == (b"mine", PAGE)
    memory.close()
    backing.allocate([(0, PAGE)], file=str(file)).close()


def test_a_file_that_is_removed_stays_the_memory_of_the_guest_that_has_it(file: Path) -> None:
    memory = backing.allocate([(0, PAGE)], file=str(file))
    file.unlink()
    memory.write(0, b"still here")
    assert memory.read(0, 10) == b"still here"
    memory.close()
    with pytest.raises(HostError, match=r"^cannot open .*/memory, which memory.file names: No such file or directory"):
        backing.allocate([(0, PAGE)], file=str(file))


def test_a_directory_gets_a_file_that_nobody_sees(tmp_path: Path) -> None:
    memory = backing.allocate([(0, PAGE)], file=str(tmp_path))
    memory.write(0, b"x")
    assert os.listdir(tmp_path) == []
    memory.close()


def test_a_file_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_tmpfile)
    memory = backing.allocate([(0, PAGE)], file=str(tmp_path))
    memory.write(0, b"x")
    assert os.listdir(tmp_path) == []
    memory.close()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/null"):
        with pytest.raises(ConfigError, match="neither a regular file nor a directory"):
            backing.allocate([(0, PAGE)], file=path)


def test_a_file_that_may_not_be_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root writes everything: let the open fail as it would for others

        def deny(*_args: object, **_more: object) -> Never:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "open", deny)
    else:
        file.chmod(0o400)
    with pytest.raises(HostError, match=r"^cannot open .*/memory, which memory.file names: Permission denied \(errno 13\)$"):
        backing.allocate([(0, PAGE)], file=str(file))


# What an unprivileged test cannot make: run with a small tmpfs of its own, in a mount namespace that ends with it.
IN_A_SMALL_FILE_SYSTEM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from vmservice.memory.guest_memory import GuestMemory
from vmservice.errors import VmmError
from vmservice.memory import backing, guest_memory

small = sys.argv[2]
def attempt(size, file):
    try:
        backing.allocate([(0, size)], file=file).close()
        print("ok")
    except VmmError as error:
        print(type(error).__name__, str(error).replace(small, "SMALL"))

file = small + "/memory"
open(file, "wb").write(b"x" * 4096)
attempt(2 << 20, file)
os.truncate(file, 4096)
attempt(8 << 20, file)
print("size", os.stat(file).st_size)
attempt(8 << 20, small)
print("free", os.statvfs(small).f_bavail * 4096 >= 4 << 20)
os.system(f"mount -o remount,ro {small}")
attempt(1 << 20, file)
attempt(1 << 20, small)
"""


@needs_root
def test_full_and_read_only_file_systems(tmp_path: Path) -> None:
    """Without its room taken at the start, a guest in a full tmpfs would end us with SIGBUS when it touches its memory."""
    command = f"mount -t tmpfs -o size=5M tmpfs {tmp_path} && exec {sys.executable} - {CHECKOUT} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        input=IN_A_SMALL_FILE_SYSTEM,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (
        [
            "ok",
            "HostError cannot make 8388608 bytes of guest memory in SMALL/memory: No space left on device (errno 28)",
            "size 4096",
            "HostError cannot make 8388608 bytes of guest memory in SMALL: No space left on device (errno 28)",
            "free True",
            "HostError cannot open SMALL/memory, which memory.file names: Read-only file system (errno 30)",
            "HostError cannot open SMALL, which memory.file names: Read-only file system (errno 30)",
        ],
        "",
    )


# What becomes of an access to a page that is gone, as the loop has faulthandler on.
TOUCHES_A_PAGE_THAT_IS_GONE = """
import faulthandler, os, sys
sys.path.insert(0, sys.argv[1])
from vmservice.memory import backing

faulthandler.enable()
memory = backing.allocate([(0, 1 << 20)], file=sys.argv[2])
os.truncate(sys.argv[2], 0)
memory.read(0, 1)
print("it was read")
"""


def test_a_page_that_is_gone_ends_us_by_sigbus(file: Path) -> None:
    """units/why-ended turns that into a sentence: tests/system/test_restarts.py."""
    done = subprocess.run(
        [sys.executable, "-c", TOUCHES_A_PAGE_THAT_IS_GONE, str(CHECKOUT), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "")
    assert "Fatal Python error: Bus error" in done.stderr and "guest_memory.py" in done.stderr


# Huge pages


@pytest.fixture
def pool() -> Iterator[int]:
    """Four huge pages of 2 MiB more than there were, put back afterwards; how many there are then."""
    setting = Path(HUGE_PAGES)
    if not os.access(setting, os.W_OK):
        pytest.skip("huge pages of 2 MiB cannot be made on this machine")
    before = int(setting.read_text())
    setting.write_text(str(before + 4))
    try:
        assert int(setting.read_text()) == before + 4, "this machine has no room for four huge pages"
        yield before + 4
    finally:
        setting.write_text(str(before))


@needs_root
@pytest.mark.parametrize("shared", [False, True])
def test_huge_pages(pool: int, shared: bool) -> None:
    memory = backing.allocate([(0, 4 * MIB), (HIGH, 4 * MIB)], hugepages=True, prefault=True, shared=shared)
    assert [page_kib(region.mapping) for region in memory.regions] == [2048, 2048]
    memory.write(HIGH, b"x")
    memory.discard(HIGH, 2 * MIB)
    assert memory.read(HIGH, 1) == b"x", "a huge page was given back"
    memory.close()


@needs_root
def test_too_few_huge_pages_are_said_at_the_start(pool: int) -> None:
    wanted = pool + 3
    with pytest.raises(
        HostError,
        match=rf"^cannot have {wanted} huge pages of 2 MiB for the guest's memory: \d+ of this host's {pool} are free; "
        rf"vm.nr_hugepages must be at least \d+$",
    ) as caught:
        backing.allocate([(0, wanted * 2 * MIB)], hugepages=True)
    assert caught.value.errno == errno.ENOMEM


def test_a_host_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "_HUGE_PAGES", "/nowhere")
    monkeypatch.setattr(backing, "_MAP_HUGE_2MB", 13 << 26)  # a size that no kernel has
    with pytest.raises(HostError, match=r"^cannot have 2 huge pages of 2 MiB .*: this host's kernel has none of that size$"):
        backing.allocate([(0, 4 * MIB)], hugepages=True)


@needs_root
def test_hugetlbfs(pool: int, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "none", tmp_path], check=True)
    try:
        memory = backing.allocate([(0, 4 * MIB), (HIGH, 2 * MIB)], file=str(tmp_path))
        memory.write(HIGH, b"x")
        assert page_kib(memory.regions[0].mapping) == 2048
        memory.close()
        with pytest.raises(
            ConfigError, match=r"size is 3145728, but .* hugetlbfs with pages of 2097152 bytes; expected a mult"
        ):
            backing.allocate([(0, 3 * MIB)], file=str(tmp_path))
        with pytest.raises(HostError, match=r"^cannot map 209715200 bytes of guest memory: Cannot allocate memory"):
            backing.allocate([(0, 200 * MIB)], file=str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# KSM


def test_where_merging_is_in_vain_it_is_said_and_all_goes_on(file: Path) -> None:
    warnings: list[str] = []
    backing.allocate([(0, PAGE)], file=str(file), mergeable=True, warn=warnings.append).close()
    assert warnings == [
        "the guest's memory cannot be merged with other guests': it is shared, as a file always is, and KSM takes private"
        " memory only"
    ]


def test_shared_memory_is_one_file_whose_size_is_sealed() -> None:
    """Whoever gets the descriptor maps the same pages, each region behind the one before, and cannot take them away."""
    memory = backing.allocate([(0, 4 * PAGE), (HIGH, 2 * PAGE)], shared=True)
    memory.write(PAGE, b"low")
    memory.write(HIGH + PAGE, b"high")
    fd = os.dup(memory.fd)
    assert os.get_inheritable(memory.fd) is False
    assert os.fstat(fd).st_size == 6 * PAGE
    with mmap.mmap(fd, 6 * PAGE) as other:
        assert (other[PAGE : PAGE + 3], other[5 * PAGE : 5 * PAGE + 4]) == (b"low", b"high")
        other[0:4] = b"back"
    assert memory.read(0, 4) == b"back"
    for size in (5 * PAGE, 7 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    before = os.fstat(fd).st_blocks
    memory.discard(0, 4 * PAGE)
    assert os.fstat(fd).st_blocks < before
    assert memory.read(0, 4 * PAGE) == bytes(4 * PAGE)
    assert not memory.is_cut_short()
    memory.close()
    os.close(fd)


def test_shared_memory_is_not_merged_and_that_is_said() -> None:
    warnings: list[str] = []
    backing.allocate([(0, PAGE)], shared=True, mergeable=True, prefault=True, warn=warnings.append).close()
    assert len(warnings) == 1 and "it is shared" in warnings[0]


def test_shared_memory_that_cannot_be_is_not_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fds = os.listdir("/proc/self/fd")

    def refuse(*_: object) -> Never:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(HostError, match=r"^cannot make 4096 bytes of shared guest memory: Too many open files"):
        backing.allocate([(0, PAGE)], shared=True)
    monkeypatch.undo()
    assert os.listdir("/proc/self/fd") == fds
    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(HostError, match=r"^cannot make shared guest memory: Too many open files"):
        backing.allocate([(0, PAGE)], shared=True)


def test_too_few_huge_pages_for_shared_memory_are_said() -> None:
    wanted = 1 << 20  # 2 TiB, which no machine has reserved
    with pytest.raises(HostError, match=rf"^cannot have {wanted} huge pages of 2 MiB for the guest's memory"):
        backing.allocate([(0, wanted * 2 * MIB)], shared=True, hugepages=True)


def test_a_kernel_without_ksm_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_MERGEABLE", 0x7FFF)
    warnings: list[str] = []
    memory = backing.allocate([(0, PAGE)], mergeable=True, warn=warnings.append)
    memory.write(0, b"x")
    memory.close()
    assert warnings == [
        "the guest's memory cannot be merged with other guests': Invalid argument; the host's kernel may lack KSM"
    ]
