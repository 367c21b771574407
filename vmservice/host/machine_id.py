"""The id of this host, machine-id(5), and ids that follow from it."""

from __future__ import annotations

# Where systemd and libdbus keep it.
_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_HEX_DIGITS = 32


def machine_id() -> bytes | None:
    """Its 16 bytes; None on a host that has none."""
    for path in _FILES:
        try:
            with open(path, encoding="ascii") as file:
                text = file.read(_HEX_DIGITS + 1).strip()
                if len(text) == _HEX_DIGITS:
                    return bytes.fromhex(text)
        except (OSError, ValueError):
            continue
    return None


def uuid5(namespace: bytes, name: str) -> bytes:
    """RFC 9562 §5.5, as `uuidgen --sha1 --namespace … --name …` makes it: 16 bytes that do not tell the namespace.

    By hand, since `uuid` and `hashlib` take milliseconds to be imported, and this is wanted before the guest runs.
    """
    from _sha1 import sha1  # type: ignore[import-not-found]

    digest = bytearray(sha1(namespace + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)
