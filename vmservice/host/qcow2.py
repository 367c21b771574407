"""Images in qcow2, as far as it is looked at here: whether a file is one. Only qemu-storage-daemon reads more of it."""

from __future__ import annotations

import errno
import os

from vmservice.errors import PATH_SHOWN_MAX, ConfigError, quoted
from vmservice.host.files import WrongKindError, open_file

_MAGIC = b"QFI\xfb"


def check_qcow2(path: str, where: str) -> None:
    """ConfigError, which begins with `where`, unless the file at `path` is one and may be read."""
    try:
        fd = open_file(path, os.O_RDONLY, may_be_device=True)
        try:
            magic = os.read(fd, len(_MAGIC))
        finally:
            os.close(fd)
    except OSError as error:
        shown = quoted(path, PATH_SHOWN_MAX)
        if error.errno == errno.ENOENT:
            raise ConfigError(f"{where}: path is {shown}, which does not exist") from None
        raise ConfigError(f"{where}: path is {shown}, which cannot be read: {os.strerror(error.errno or 0)}") from None
    except WrongKindError as error:
        raise ConfigError(f"{where}: {path} is {error.kind}; it must be a regular file or a block device") from None
    if magic != _MAGIC:
        raise ConfigError(f'{where}: {path} is no image in qcow2; expected one, or format = "raw"')
