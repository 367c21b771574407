"""The parsed form of a TOML file, kept between starts: importing Python's parser costs more than all else of a start.

Only what the parser said is kept, never what was checked: the caller checks a cached table as it would a fresh one. The
cache lives in $CACHE_DIRECTORY (systemd sets it for CacheDirectory=); without it there is none. It may be lost, damaged or
deleted at any time: whatever is wrong with it, the file is parsed anew.
"""

from __future__ import annotations

import os
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    Table = dict[str, object]
    Key = tuple[str, int, int, int, int, int]

MAGIC = b"vmstoml1"
# Magic, sys.hexversion (the marshal format belongs to one Python), CRC-32 of the rest.
HEADER = struct.Struct("<8sII")
MAX_SIZE_BYTES = 4 << 20

# A file that changed a moment ago may change again within one tick of its file system's clock and show the same times:
# such a file is not cached, as git does with its index. The coarsest clock in use (FAT) ticks every two seconds.
RACY_NS = 2_000_000_000


def load(path: str, status: os.stat_result) -> Table | None:
    """What was parsed from the file at `path` when it had this `status`; None if that is not known."""
    cache = _cache_path(path)
    if cache is None:
        return None
    data = _read_own_file(cache)
    if data is None or len(data) <= HEADER.size:
        return None
    magic, hexversion, checksum = HEADER.unpack_from(data)
    if magic != MAGIC or hexversion != sys.hexversion:
        return None
    payload = memoryview(data)[HEADER.size :]
    from binascii import crc32
    from marshal import loads

    # marshal trusts its input, so nothing damaged may reach it: hence the checksum; and nothing foreign: hence the owner.
    if crc32(payload) != checksum:
        return None
    try:
        entry = loads(payload)
    except (ValueError, EOFError, TypeError, MemoryError):
        return None
    if not (isinstance(entry, tuple) and len(entry) == 2):
        return None
    key, table = entry
    return table if key == _key(path, status) and isinstance(table, dict) else None


def store(path: str, status: os.stat_result, table: Table, now_ns: int) -> None:
    """Keep `table`, which was parsed from `path` while it had `status`; at `now_ns` (since the epoch) it still had.

    Any failure leaves the old cache or none. st_ctime cannot be set from user space and moves with each change, so a file
    whose st_ctime is not safely in the past (or lies in the future: the clock was set back) is not kept.
    """
    cache = _cache_path(path)
    if cache is None or now_ns - status.st_ctime_ns < RACY_NS:
        return
    from binascii import crc32
    from marshal import dumps

    try:
        payload = dumps((_key(path, status), table))
    except ValueError:
        return  # dates and times of TOML cannot be marshalled
    _write_atomically(cache, HEADER.pack(MAGIC, sys.hexversion, crc32(payload)) + payload)


def _key(path: str, status: os.stat_result) -> Key:
    return (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _cache_path(path: str) -> str | None:
    # systemd puts all directories of CacheDirectory= there, with colons between them.
    directory = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    return f"{directory}/{os.path.basename(path)}.cache" if directory.startswith("/") else None


def _read_own_file(cache: str) -> bytes | None:
    """The bytes of a regular file that is ours and that nobody else can write."""
    try:
        fd = os.open(cache, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None
        return os.read(fd, status.st_size) if status.st_size <= MAX_SIZE_BYTES else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _write_atomically(cache: str, data: bytes) -> None:
    temporary = f"{cache}.new"  # always the same: one that a killed process left is written over
    if len(data) > MAX_SIZE_BYTES:
        return
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError):
        return
    try:
        try:
            complete = os.write(fd, data) == len(data)
        finally:
            os.close(fd)
        if complete:
            os.rename(temporary, cache)
            return
    except OSError:
        pass
    try:
        os.unlink(temporary)
    except OSError:
        return
