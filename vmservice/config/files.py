"""The files of one VM's configuration, found, read and parsed.

They are read one after the other, and of each key the last one counts: what all VMs have, `common.d/*.toml`; the VM's own file,
NAME.toml; its drop-ins, `NAME.toml.d/*.toml`. In a folder the order is that of the names.

That is so where configurations belong. A file elsewhere is read alone: in /tmp, say, anybody may put drop-ins beside it.
"""

from __future__ import annotations

import os

from vmservice.config import plain_toml
from vmservice.config.names import whose_config
from vmservice.errors import ConfigError, FileError
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    # The file's path, and what it says.
    Part = tuple[str, dict[str, object]]

FILE_MAX_BYTES = 1 << 20
FILES_MAX = 256

# For who builds images of hosts. A file in the host's common.d takes the place of one of the same name here.
VENDOR_FOLDER = "/usr/share/vmservice/common.d"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_files(name: str, path: str, draft: str | None = None) -> list[Part]:
    """All that make up the VM `name`, whose own file is at `path`, or for a trial at `draft`: that may be missing where it has
    drop-ins. ConfigError for the first one that cannot be read or parsed."""
    is_alone = whose_config(path) is None
    drop_ins = [] if is_alone else _toml_files(f"{path}.d")
    own = _read_own(name, path, draft, is_needed=not drop_ins)
    common = [] if is_alone else _toml_files(VENDOR_FOLDER, f"{os.path.dirname(path)}/common.d")
    if own == b"" and not common and not drop_ins:
        raise FileError("configuration", path, "is empty")
    if len(common) + len(drop_ins) > FILES_MAX:
        raise ConfigError(f"{path}: its drop-ins and common.d are {len(common) + len(drop_ins)} files; at most {FILES_MAX}")
    parts = [(file, _parse(file, _read(file, file))) for file in common]
    if own is not None:
        parts.append((path, _parse(path, own)))
    parts += [(file, _parse(file, _read(file, file))) for file in drop_ins]
    return parts


def _toml_files(*folders: str) -> list[str]:
    """Paths, in the order of the names; of several with one name that in the last folder."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            raise ConfigError(f"{folder} is not a directory; it is where drop-ins are looked for") from None
        except OSError as error:
            from vmservice.host.accounts import own_name

            raise ConfigError(f"{folder} cannot be read by {own_name()}: {os.strerror(error.errno or 0)}") from None
        found.update((name, f"{folder}/{name}") for name in names if name.endswith(".toml") and name[0] != ".")
    return [found[name] for name in sorted(found)]


def _read_own(name: str, path: str, draft: str | None, *, is_needed: bool) -> bytes | None:
    """The VM's own file; None where it is not there, and drop-ins are."""
    try:
        return _read(path, draft or path)
    except ConfigError:
        if os.path.lexists(draft or path):
            raise
        if is_needed:
            raise ConfigError(f"there is no configuration for the VM {name}: {path} does not exist") from None
        return None


def _read(path: str, place: str) -> bytes:
    """What the file at `place` has, which stands for that at `path`."""
    with RegularFile(place, "configuration", may_be_empty=True) as file:
        if file.size_bytes > FILE_MAX_BYTES:
            fault = f"has {file.size_bytes} bytes; at most {FILE_MAX_BYTES} are allowed"
            raise FileError("configuration", path, fault)
        return file.read(FILE_MAX_BYTES)


def _parse(path: str, data: bytes) -> dict[str, object]:
    """A byte order mark and the line ends of Windows are as good as none."""
    if data.startswith(_BYTE_ORDER_MARK):
        data = data[len(_BYTE_ORDER_MARK) :]
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        from vmservice.config.toml_errors import not_utf8

        raise FileError("configuration", path, not_utf8(data, error.start)) from None
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    plain = plain_toml.read(text)
    if plain is not None:
        return plain
    import tomllib

    try:
        return tomllib.loads(text)
    except (RecursionError, ValueError) as error:  # what int() says to a number of thousands of digits is a ValueError, too
        from vmservice.config.toml_errors import fault

        raise FileError("configuration", path, fault(text, error)) from None
