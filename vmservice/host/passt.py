"""passt on this host: whether there is one, how it is spoken with, and whether the ports can be had that it is to forward."""

from __future__ import annotations

import _socket
import errno
import os

from vmservice.errors import HostError, HostFacilityMissing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PASST = "/usr/bin/passt"

# The name of an option is in the program, and nowhere in one that does not have it. Asking the program takes a process.
_VHOST_USER = b"vhost-user"
_PROGRAM_MAX_BYTES = 16 << 20

_KINDS = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}


def find_passt(network: str) -> bool:
    """Whether the host's passt serves vhost-user, as it does from November 2024 on. HostFacilityMissing when there is none, for
    the network of that name."""
    try:
        fd = os.open(PASST, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise HostFacilityMissing(
            f"the network {network} needs passt, and there is no {PASST}; Debian has it in the package passt"
        ) from None
    try:
        return _VHOST_USER in os.read(fd, min(os.fstat(fd).st_size, _PROGRAM_MAX_BYTES))
    finally:
        os.close(fd)


def check_ports(network: str, protocol: str, address: str, ports: Iterable[int]) -> None:
    """HostError for the first that cannot be listened at: at `address`, or where that is empty at all addresses.

    Whoever listens next could still come too late, but then there is somebody who says less of it.
    """
    for port in ports:
        error = _try_port(_KINDS[protocol], address, port)
        if error:
            raise HostError(
                f"the network {network} forwards port {port}/{protocol} of the host, and {_why(error, address, port)}"
            )


def _try_port(kind: int, address: str, port: int) -> int:
    """0, or what is in the way. Without an address as passt has it: one socket for both families, where the host has them."""
    if address:
        return _bind(_socket.AF_INET6 if ":" in address else _socket.AF_INET, kind, address, port)
    error = _bind(_socket.AF_INET6, kind, "::", port)
    if error in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
        error = _bind(_socket.AF_INET, kind, "0.0.0.0", port)
    return error


def _bind(family: int, kind: int, address: str, port: int) -> int:
    try:
        socket = _socket.socket(family, kind | _socket.SOCK_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EINVAL
    try:
        if kind == _socket.SOCK_STREAM:  # connections that have just ended are in nobody's way
            socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6 and address == "::":
            socket.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
        socket.bind((address, port))
    except OSError as error:
        return error.errno or errno.EINVAL
    finally:
        socket.close()
    return 0


def _why(error: int, address: str, port: int) -> str:
    if error == errno.EADDRINUSE:
        return "somebody listens there already; ss -lntup says who"
    if error == errno.EADDRNOTAVAIL:
        return f"the host has no address {address}"
    if error == errno.EACCES:
        return (
            f"this account may not listen at ports below {_lowest_port()}; forward a higher one, "
            "or lower the sysctl net.ipv4.ip_unprivileged_port_start"
        )
    return f"passt cannot listen there: {os.strerror(error)}"


def _lowest_port() -> str:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "1024"
