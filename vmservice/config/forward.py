"""`forward = ["8080:80/tcp", …]` of a `[[network]]`: ports of the host that lead to ports of the guest.

An entry is [ADDRESS:]PORTS[:PORTS][/PROTOCOL]: the host's ports, then the guest's, by default the same; a range is FIRST-LAST.
"""

from __future__ import annotations

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from vmservice.config.reader import TableReader

PROTOCOLS = ("tcp", "udp")
ENTRIES_MAX = 64
# Each is a socket or two of passt's.
PORTS_MAX = 1024
# What any account may listen at, if the host has not changed net.ipv4.ip_unprivileged_port_start.
UNPRIVILEGED_PORTS = 1024


class Forward:
    """`count` ports from `host` on of the host, at `address` or, where that is empty, at all of its addresses."""

    __slots__ = ("address", "count", "guest", "host", "protocol")

    def __init__(self, address: str, host: int, guest: int, count: int, protocol: str) -> None:
        self.address: Final = address
        self.host: Final = host
        self.guest: Final = guest
        self.count: Final = count
        self.protocol: Final = protocol

    @property
    def ports(self) -> range:
        return range(self.host, self.host + self.count)

    def __str__(self) -> str:
        address = f"[{self.address}]:" if ":" in self.address else f"{self.address}:" if self.address else ""
        return f"{address}{_shown(self.host, self.count)}:{_shown(self.guest, self.count)}/{self.protocol}"


def parse_forward(text: str) -> Forward:
    """ValueError, with what was expected, for what is no entry."""
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise ValueError(f"a protocol behind the slash, {' or '.join(PROTOCOLS)}")
    address, rest = _take_address(rest)
    host_words, colon, guest_words = rest.partition(":")
    host, guest = _ports(host_words), _ports(guest_words if colon else host_words)
    if len(host) != len(guest):
        raise ValueError(f"as many ports of the guest as of the host: {len(host)} and not {len(guest)}")
    return Forward(address, host.start, guest.start, len(host), protocol or PROTOCOLS[0])


def read_forwards(reader: TableReader, where: str, taken: set[tuple[str, int]]) -> tuple[str, ...]:
    """The entries, each as `parse_forward` takes it. `taken` has the ports of the VM's networks before this one, and gets
    those of this one: passt has one target for each port of a protocol, whatever the address."""
    entries = []
    count = 0
    texts = reader.texts(where, "forward")
    if len(texts) > ENTRIES_MAX:
        reader.refuse(where, "forward", f'at most {ENTRIES_MAX} entries; neighbours can be a range, "8000-8009:80-89/tcp"')
    for text in texts[:ENTRIES_MAX]:
        try:
            entry = parse_forward(text)
        except ValueError as error:
            reader.refuse_item(where, "forward", text, str(error))
            continue
        ports = {(entry.protocol, port) for port in entry.ports}
        if twice := ports & taken:
            expected = f"each port of the host once; {min(twice)[1]}/{entry.protocol} is forwarded already"
            reader.refuse_item(where, "forward", text, expected)
            continue
        taken.update(ports)
        count += entry.count
        entries.append(str(entry))
    if count > PORTS_MAX:
        reader.refuse(where, "forward", f"at most {PORTS_MAX} ports in all, and not {count}")
    return tuple(entries)


def _take_address(text: str) -> tuple[str, str]:
    """An address in front of the ports, if there is one, and the rest."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]:")
        family = _socket.AF_INET6
    elif "." in text.partition(":")[0]:
        address, bracket, rest = text.partition(":")
        family = _socket.AF_INET
    else:
        return "", text
    if not bracket or not _is_address(address, family):
        raise ValueError('an IP address in front of the ports, as in "127.0.0.1:8080:80/tcp" or "[::1]:8080:80/tcp"')
    return address, rest


def _is_address(text: str, family: int) -> bool:
    try:
        return bool(_socket.inet_pton(family, text))
    except (OSError, ValueError):  # a zero byte is a ValueError
        return False


def _ports(text: str) -> range:
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(
        number.isascii() and number.isdecimal() and len(number) <= 5 and 0 < int(number) <= 0xFFFF for number in numbers
    ):
        raise ValueError('ports from 1 to 65535, as in "8080:80/tcp" or "8000-8009:80-89/udp"')
    low, high = map(int, numbers)
    if low > high:
        raise ValueError(f"a range of ports from the lower to the higher, {high}-{low}")
    return range(low, high + 1)


def _shown(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
