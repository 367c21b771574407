"""The public key by which whoever creates a VM is let into it."""

from __future__ import annotations

import base64
import binascii
import os
import pwd

from vmservice.errors import ConfigError
from vmservice.host.files import RegularFile

# As ssh-keygen calls them, the best one first.
_NAMES = ("id_ed25519.pub", "id_ed25519_sk.pub", "id_ecdsa.pub", "id_ecdsa_sk.pub", "id_rsa.pub")
_MAX_BYTES = 64 << 10


def find_key(path: str | None) -> tuple[str, str]:
    """(keys, a line each; the file): that of `path`, else the caller's own; under sudo, of whoever called that.

    Both are empty where there is none. ConfigError for a file that has none.
    """
    if path is not None:
        return _read(os.path.abspath(path)), os.path.abspath(path)
    for name in _NAMES:
        own = f"{_home()}/.ssh/{name}"
        if os.path.isfile(own):
            return _read(own), own
    return "", ""


def _home() -> str:
    """The person's, not root's, where one has become root."""
    person = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    if person and person != "root":
        try:
            return pwd.getpwnam(person).pw_dir
        except KeyError:
            pass
    return os.path.expanduser("~")


def _read(path: str) -> str:
    with RegularFile(path, "SSH key") as file:
        text = file.read(_MAX_BYTES).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if "PRIVATE KEY" in text:
        raise ConfigError(f"the SSH key {path} is the private one, which nobody else is to have; expected {path}.pub")
    if not keys or not all(_is_key(line) for line in keys):
        raise ConfigError(f'the SSH key {path} is no public key of OpenSSH: expected lines such as "ssh-ed25519 AAAA… me"')
    return "\n".join(keys)


def _is_key(line: str) -> bool:
    """`TYPE BASE64 [COMMENT]`, where the data begin with the type: RFC 4253 §6.6."""
    kind, _, rest = line.partition(" ")
    try:
        data = base64.b64decode(rest.split(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        return False
    length = int.from_bytes(data[:4], "big")
    return line.isprintable() and data[4 : 4 + length] == kind.encode()
