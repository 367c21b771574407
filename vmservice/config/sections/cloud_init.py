"""`[cloud-init]`: what cloud-init in the guest reads at its first start, from a small disk that is made for it (NoCloud)."""

from __future__ import annotations

from vmservice.errors import FileError, NamingKey
from vmservice.host.files import RegularFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.load import Config
    from vmservice.config.reader import TableReader

KEYS = ("user_data",)
ARRAY = False
LIVE: tuple[str, ...] = ()
PLUG = "vmservice.plug.cloud_init"
# Behind the disks, which keep the names that the guest knows them by.
ORDER = 52

# Whose SSH keys cloud-init is told, too.
KEYS_CREDENTIAL = "ssh.authorized_keys.root"

USER_DATA_MAX_BYTES = 1 << 20


class CloudInitDevice:
    """Absolute paths, None where there is none: `user_data`, and `keys_file` where the keys are not the text `keys`."""

    kind = "cloud-init"
    plug = PLUG
    name = "cloud-init"

    __slots__ = ("keys", "keys_file", "user_data")

    def __init__(self, user_data: str | None, keys: str, keys_file: str | None) -> None:
        self.user_data: Final = user_data
        self.keys: Final = keys
        self.keys_file: Final = keys_file


def read(reader: TableReader, config: Config) -> tuple[CloudInitDevice, ...]:
    if not reader.has("cloud-init"):
        return ()
    keys, keys_file = "", None
    for credential in config.credentials:
        if credential.name == KEYS_CREDENTIAL:
            keys, keys_file = (credential.value or b"").decode(errors="replace"), credential.file
    return (CloudInitDevice(reader.file("cloud-init", "user_data"), keys, keys_file),)


def check_files(device: CloudInitDevice, _path: str) -> None:
    if device.user_data is not None:
        with NamingKey("cloud-init.user_data"):
            read_user_data(device.user_data)


def read_user_data(path: str) -> bytes:
    """The whole file; ConfigError where it is not there or too long.

    A byte order mark is left out: cloud-init would not find what kind of file it is, which the first characters say.
    """
    with RegularFile(path, "user data") as file:
        if file.size_bytes > USER_DATA_MAX_BYTES:
            fault = f"has {file.size_bytes} bytes; at most {USER_DATA_MAX_BYTES} are allowed"
            raise FileError("user data", path, fault)
        return file.read(USER_DATA_MAX_BYTES).removeprefix(b"\xef\xbb\xbf")
