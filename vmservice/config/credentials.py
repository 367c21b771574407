"""`[credentials]`: what systemd in the guest is given, by name; and what it makes of names and sizes.

Imported where a VM has any. No sentence here holds a value, or a part of one: they are secret.
"""

from __future__ import annotations

import os

from vmservice.config.core import has_firmware
from vmservice.config.reader import PATH_MAX_BYTES
from vmservice.errors import ConfigError, FileError, Naming, NamingKey, quoted
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.reader import TableReader

# A file name and the name of a descriptor at once: credential_name_valid() in systemd's src/shared/creds-util.c.
NAME_MAX_LENGTH = 255
# CREDENTIAL_SIZE_MAX of systemd. SMBIOS has less room for all of them together.
SIZE_MAX_BYTES = 1 << 20


class Credential:
    """`value`, or the file that has it; the other one is None. A path is absolute."""

    __slots__ = ("file", "name", "value")

    def __init__(self, name: str, *, value: bytes | None = None, file: str | None = None) -> None:
        self.name: Final = name
        self.value: Final = value
        self.file: Final = file


def read(reader: TableReader) -> tuple[Credential, ...]:
    """Those of the file, in its order."""
    entries = reader.whole("credentials")
    if entries and has_firmware(reader):
        reader.note("credentials", "[credentials] is for a VM with [kernel]; a firmware makes SMBIOS tables of its own")
    credentials = []
    for name, value in entries.items():
        try:
            credentials.append(_credential(reader.path, name, value))
        except ConfigError as error:
            reader.note(f"credentials.{name}", str(error))
    return tuple(credentials)


def is_name(name: str) -> bool:
    """Whether systemd takes it for the name of a credential."""
    is_plain = name.isascii() and name.isprintable() and ":" not in name and "/" not in name
    return is_plain and name not in ("", ".", "..") and len(name) <= NAME_MAX_LENGTH


def read_values(credentials: tuple[Credential, ...], naming: Naming) -> dict[str, bytes]:
    """All values by name, those of files read; ConfigError where that cannot be, which has its file's name by `naming`."""
    with naming:
        return {one.name: value_of(one) for one in credentials}


def value_of(credential: Credential) -> bytes:
    """Its value, of a file read; ConfigError, which begins with the key, where that cannot be."""
    return credential.value if credential.value is not None else _file_value(credential)


def _credential(path: str, name: str, value: object) -> Credential:
    if isinstance(value, dict) and "file" not in value and value:
        # A name with a dot that is not in quotes is a table to TOML.
        inner = f"{name}.{next(iter(value))}"
        shown = f'; a name with dots is in quotes: "{inner}" = …' if is_name(inner) else ""
        raise ConfigError(f"{_key(name)} is a table without file{shown}")
    if not is_name(name):
        raise ConfigError(
            f"{_key(name)} cannot be the name of a credential;"
            f" it must be 1 to {NAME_MAX_LENGTH} printable characters of ASCII, without : and /"
        )
    if isinstance(value, str):
        data = value.encode()
        if len(data) > SIZE_MAX_BYTES:
            raise ConfigError(f"{_key(name)} has {len(data)} bytes; systemd takes at most {SIZE_MAX_BYTES}")
        return Credential(name, value=data)
    if isinstance(value, dict) and list(value) == ["file"]:
        file = value["file"]
        if isinstance(file, str) and file and "\0" not in file and len(os.fsencode(file)) <= PATH_MAX_BYTES:
            return Credential(name, file=os.path.join(os.path.dirname(path), file))
    raise ConfigError(f'{_key(name)} must be a string, or {{ file = "…" }} with the path of a file that has it')


def _file_value(credential: Credential) -> bytes:
    with NamingKey(f"{_key(credential.name)}.file"), RegularFile(str(credential.file), "file") as file:
        if file.size_bytes > SIZE_MAX_BYTES:
            raise FileError("file", file.path, f"has {file.size_bytes} bytes; systemd takes at most {SIZE_MAX_BYTES}")
        return file.read(SIZE_MAX_BYTES)


def _key(name: str) -> str:
    return f"credentials.{quoted(name, NAME_MAX_LENGTH)}"
