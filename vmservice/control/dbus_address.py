"""Addresses of a bus: D-Bus specification, Server Addresses. Of the transports only unix sockets are understood.

Not dbus-next's parser: the import of urllib.parse for it costs each VM half a megabyte.
"""

from __future__ import annotations

import os

from vmservice.errors import HostFacilityMissing, UsageError, quoted

_PLAIN = frozenset("-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz/.*")

_SHOWN_MAX = 200

# Transport, and its options.
Address = tuple[str, dict[str, str]]


def checked_address(address: str) -> str:
    """`address`, or UsageError where it is not a D-Bus address with a unix socket in it."""
    try:
        names = [_socket_name(options) for transport, options in _parsed(address) if transport == "unix"]
    except (ValueError, HostFacilityMissing) as error:
        raise UsageError(f"bus address {quoted(address, _SHOWN_MAX)} is malformed: {error}") from None
    if not names:
        raise UsageError(f"bus address {quoted(address, _SHOWN_MAX)} has no unix socket; unix:path=/… is what is understood")
    return address


def socket_names(address: str) -> list[str]:
    """What connect(2) takes for each unix socket of a checked address; an abstract name begins with NUL."""
    return [_socket_name(options) for transport, options in _parsed(address) if transport == "unix"]


def _parsed(address: str) -> list[Address]:
    """Raises ValueError with a clause that says what is wrong."""
    parsed = [_parsed_one(part) for part in address.split(";") if part]
    if not parsed:
        raise ValueError("it is empty")
    return parsed


def _parsed_one(address: str) -> Address:
    transport, colon, listed = address.partition(":")
    if not colon:
        raise ValueError(f"{quoted(address, _SHOWN_MAX)} names no transport")
    options = {}
    for option in filter(None, listed.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"the option {quoted(option, _SHOWN_MAX)} has no value")
        options[key] = _unescaped(value)
    return transport, options


def _unescaped(value: str) -> str:
    """Each % and two hex digits stand for a byte."""
    first, *escapes = value.split("%")
    data = first.encode()
    for escape in escapes:
        data += bytes.fromhex(escape[:2]) + escape[2:].encode()
    if not _PLAIN.issuperset(value.replace("%", "")) or any(len(escape) < 2 for escape in escapes):
        raise ValueError(f"the value {quoted(value, _SHOWN_MAX)} has characters that are not escaped")
    return os.fsdecode(data)


def _socket_name(options: dict[str, str]) -> str:
    if "path" in options:
        return options["path"]
    if "abstract" in options:
        return f"\0{options['abstract']}"
    if "runtime" in options:  # D-Bus specification, Unix domain sockets: runtime=yes
        return f"{os.environ.get('XDG_RUNTIME_DIR', '/run')}/bus"
    raise HostFacilityMissing("a unix address needs path=, abstract= or runtime=yes")
