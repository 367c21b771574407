"""Disk images: how they are opened and what is refused, and every byte that is read and written."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.errors import ConfigError, HostFacilityMissing
from vmservice.host import block_file, direct_io
from vmservice.host.storage import Image, check_image

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(256)) * 4 * 1024)  # 1 MiB
    return path


@pytest.fixture
def image(file: Path) -> Iterator[Image]:
    image = Image(str(file), "disk root", writable=True)
    yield image
    image.close()


@pytest.fixture
def direct(file: Path) -> Iterator[Image]:
    image = Image(str(file), "disk root", writable=True, is_direct=True)
    yield image
    image.close()


@pytest.fixture
def pages() -> Iterator[memoryview]:
    """Two MiB of memory that begin with a page, as a guest's do."""
    with mmap.mmap(-1, 2 * MIB) as mapping, memoryview(mapping) as view:
        yield view


def data(size: int, seed: int = 0) -> bytes:
    return bytes((7 * number + seed) % 251 for number in range(size))


def test_it_reads_and_writes_in_place(image: Image, file: Path, pages: memoryview) -> None:
    first, second = pages[:100], pages[1000:1412]
    image.read([first, second], 512, 512)
    assert bytes(first) + bytes(second) == file.read_bytes()[512:1024]
    pages[:700], pages[2000:2324] = data(700), data(324, 1)
    image.write([pages[:700], pages[2000:2324]], 4096, 1024)
    assert file.read_bytes()[4096:5120] == data(700) + data(324, 1)
    assert image.is_dirty
    image.write([pages[:512]], 0, 512, durable=True)
    image.flush()
    assert file.read_bytes()[:512] == data(512)


def test_more_buffers_than_one_call_takes(image: Image, file: Path, pages: memoryview) -> None:
    views = [pages[2 * number : 2 * number + 1] for number in range(3000)] + [pages[8192 : 8192 + 72]]
    image.read(views, 0, 3072)
    assert b"".join(bytes(view) for view in views) == file.read_bytes()[:3072]
    image.write(views[::-1][1:], 0, 3000)
    assert file.read_bytes()[:3000] == (bytes(range(256)) * 12)[:3000][::-1]


def test_a_peek_has_all_or_nothing(image: Image, pages: memoryview) -> None:
    os.pread(image.fd, MIB, 0)
    assert image.peek([pages[:4096]], 0, 4096)
    assert not image.peek([pages[:4096]], MIB - 512, 4096), "the image ends before"


def test_a_file_system_that_cannot_peek_is_not_asked_again(
    image: Image, pages: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(os, "preadv", refuse)
    assert not image.peek([pages[:512]], 0, 512)
    monkeypatch.undo()
    assert not image.peek([pages[:512]], 0, 512)


def test_an_image_that_was_cut_short_is_an_error(image: Image, file: Path, pages: memoryview) -> None:
    os.truncate(file, MIB // 2)
    image.read([pages[:512]], MIB // 2 - 512, 512)
    for offset in (MIB // 2, MIB // 2 - 512):
        with pytest.raises(OSError, match="cut short") as caught:
            image.read([pages[:1024]], offset, 1024)
        assert caught.value.errno == errno.EIO
        del caught  # its traceback has the buffers


@pytest.mark.parametrize("start", [0, 1, 512, 4096 + 3])
@pytest.mark.parametrize("size", [512, 4096, MIB])
def test_any_address_and_framing_without_the_page_cache(
    direct: Image, file: Path, pages: memoryview, start: int, size: int
) -> None:
    wanted = data(size, start)
    pages[start : start + size] = wanted
    cut = size // 3
    views = [pages[start : start + cut], pages[start + cut : start + cut + 1], pages[start + cut + 1 : start + size]]
    direct.write(views, 0, size)
    assert file.read_bytes()[:size] == wanted
    pages[start : start + size] = bytes(size)
    direct.read(views, 0, size)
    assert bytes(pages[start : start + size]) == wanted
    direct.flush()
    with pytest.raises(OSError, match="cut short"):
        direct.read(views, MIB, size)


def test_what_is_longer_than_a_bounce_buffer(direct: Image, file: Path, pages: memoryview) -> None:
    with open(file, "ab") as more:
        more.truncate(4 * MIB)
    wanted = data(3 * 512 + MIB)
    pages[1 : 1 + len(wanted)] = wanted
    direct.write([pages[1 : 1 + len(wanted)]], MIB, len(wanted))
    assert file.read_bytes()[MIB : MIB + len(wanted)] == wanted


def test_alignment_is_asked_of_the_kernel_or_tried(direct: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_align, offset_align = direct.memory_align, direct.shape.block_bytes
    assert offset_align in (512, 4096)
    assert memory_align <= offset_align
    monkeypatch.setattr(direct_io, "_STATX_DIOALIGN", 0)
    assert direct_io.alignment(direct.fd) == (offset_align, offset_align)


def test_discards_and_zeroes(image: Image, file: Path) -> None:
    before = file.read_bytes()
    image.discard(4096, 8192)
    image.write_zeroes(65536, 4096, True)
    image.write_zeroes(131072, 512, False)
    expected = bytearray(before)
    for offset, length in ((4096, 8192), (65536, 4096), (131072, 512)):
        expected[offset : offset + length] = bytes(length)
    assert file.read_bytes() == bytes(expected)
    assert file.stat().st_blocks * 512 <= MIB - 3 * 4096


def test_zeroes_are_written_where_the_file_system_knows_none(image: Image, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(image, "_fallocate", refuse)
    monkeypatch.setattr(block_file, "_ZEROES_BYTES", 4096)
    image.write_zeroes(512, 10 * 1024, False)
    assert file.read_bytes()[: 11 * 1024] == bytes(range(256)) * 2 + bytes(10 * 1024) + (bytes(range(256)) * 2)
    with pytest.raises(OSError, match="no"):
        image.discard(0, 512)


def test_a_failed_flush_stays_failed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel forgets what it could not write: the next fdatasync would find nothing amiss."""

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for is_direct in (False, True):
        image = Image(str(file), "disk root", writable=True, is_direct=is_direct)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError, match="Input/output error"):
                image.flush()
        if is_direct:  # nothing of it was in the page cache
            image.flush()
        else:
            with pytest.raises(OSError, match="Input/output error"):
                image.flush()
        image.close()


def test_its_shape(image: Image) -> None:
    shape = image.shape
    assert (shape.block_bytes, shape.physical_bytes, shape.discard_bytes) == (512, 4096, 4096)
    assert image.size_bytes == MIB
    assert image.can_discard()
    assert image.fds() == {"image": image.fd}
    assert not os.get_inheritable(image.fd)


def test_it_grows_in_whole_blocks(image: Image, file: Path) -> None:
    os.truncate(file, 2 * MIB + 100)
    assert image.look_again() == image.size_bytes == 2 * MIB


def test_a_qcow2_image_is_known_by_its_beginning(image: Image, pages: memoryview) -> None:
    assert not image.looks_like_qcow2()
    pages[:4] = b"QFI\xfb"
    image.write([pages[:512]], 0, 512)
    assert image.looks_like_qcow2()


def test_what_cannot_be_opened(tmp_path: Path, file: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, words in (
        (tmp_path / "none", None),
        (fifo, "fifo is a FIFO; it must be a regular file or a block device"),
        (Path("/dev/null"), "null is a character device; it must be a regular file or a block device"),
    ):
        with pytest.raises(ConfigError) as caught:
            Image(str(path), "disk root", writable=True)
        assert str(caught.value) == f"disk root: {path.parent}/{words}" if words else f'path is "{path}", which does not exist'
    for size in (0, 513):
        os.truncate(file, size)
        with pytest.raises(ConfigError, match=rf"disk root: {file} has {size} bytes; expected a multiple of 512 that is not 0"):
            Image(str(file), "disk root", writable=True)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "cannot be written by the account root: Permission denied"),
        (errno.EROFS, "cannot be written by the account root: Read-only file system"),
        (errno.EBUSY, "is mounted, or used by another device of this host; a guest must have it alone"),
        (errno.EINVAL, 'cache = "direct" is not possible with'),
        (errno.ENXIO, "cannot be opened: No such device or address"),
    ],
)
def test_what_the_host_refuses(file: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError) as caught:
        Image(str(file), "disk root", writable=True, is_direct=True)
    assert words in str(caught.value)


def test_a_device_that_is_written_to_is_claimed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mounted one is refused by the kernel then; one that is only read may be shared."""
    asked: list[int] = []

    real = os.open

    def note(path: str, flags: int) -> int:
        if flags & os.O_PATH:
            return real(path, flags)
        asked.append(flags)
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    monkeypatch.setattr(os, "open", note)
    for writable in (True, False):
        with pytest.raises(ConfigError):
            Image(str(file), "disk root", writable=writable)
    with pytest.raises(ConfigError):
        check_image(str(file), "disk root", writable=True)
    assert [bool(flags & os.O_EXCL) for flags in asked] == [True, False, False], "the check of one that runs must not fail"


def test_who_has_an_image_is_found_though_a_descriptor_closes_meanwhile(
    image: Image, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of the list of descriptors itself does."""
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: ["999999", *listdir(path)] if str(path).endswith("/fd") else listdir(path))
    with pytest.raises(HostFacilityMissing, match="is locked by this VM itself, as another disk"):
        Image(str(file), "disk data", writable=False)


def test_an_image_is_open_once(image: Image, file: Path) -> None:
    with pytest.raises(HostFacilityMissing, match="is locked by this VM itself, as another disk"):
        Image(str(file), "disk data", writable=False)
    image.close()
    readers = [Image(str(file), "disk root", writable=False) for _ in range(2)]
    with pytest.raises(HostFacilityMissing, match="in use"):
        Image(str(file), "disk root", writable=True)
    for reader in readers:
        reader.close()
