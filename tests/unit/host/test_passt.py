"""Whether there is a passt that would do, and whether ports of the host can be had."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host import passt

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def test_a_passt_that_serves_vhost_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "passt"
    monkeypatch.setattr(passt, "PASST", str(program))
    with pytest.raises(HostFacilityMissing, match=f"the network lan needs passt, and there is no {program}; Debian has it in"):
        passt.find_passt("lan")
    program.write_bytes(b"\x7fELF\0foreground\0socket\0")
    assert not passt.find_passt("lan")
    program.write_bytes(b"\x7fELF\0foreground\0socket\0vhost-user\0")
    assert passt.find_passt("lan")


@pytest.fixture(params=["tcp", "udp"])
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """A protocol, and a port of 127.0.0.1 that somebody has."""
    with socket.socket(socket.AF_INET, KINDS[request.param]) as holder:
        holder.bind(("127.0.0.1", 0))
        if request.param == "tcp":
            holder.listen()
        yield request.param, holder.getsockname()[1]


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_a_port_that_somebody_has(taken: tuple[str, int], address: str) -> None:
    protocol, port = taken
    said = f"the network lan forwards port {port}/{protocol} of the host, and somebody listens there already"
    with pytest.raises(HostError, match=said):
        passt.check_ports("lan", protocol, address, range(port, port + 1))


def test_a_port_that_is_free_is_left_free(taken: tuple[str, int]) -> None:
    protocol, port = taken
    for _ in range(2):
        passt.check_ports("lan", protocol, "127.0.0.2", [port])
        passt.check_ports("lan", {"tcp": "udp", "udp": "tcp"}[protocol], "127.0.0.1", [port])


def test_an_address_of_another_host() -> None:
    with pytest.raises(HostError, match=r"forwards port 8080/tcp of the host, and the host has no address 198\.51\.100\.1"):
        passt.check_ports("lan", "tcp", "198.51.100.1", [8080])


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            errno.EACCES,
            "this account may not listen at ports below [0-9]+; forward a higher one, or lower the sysctl net.ipv4.ip_unpriv",
        ),
        (errno.ENOBUFS, f"passt cannot listen there: {os.strerror(errno.ENOBUFS)}"),
    ],
)
def test_what_else_is_in_the_way(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    monkeypatch.setattr(passt, "_bind", lambda *words: number)
    with pytest.raises(HostError, match=f"forwards port 80/udp of the host, and {said}"):
        passt.check_ports("lan", "udp", "", [80])


def test_a_host_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def bind(family: int, kind: int, address: str, port: int) -> int:
        asked.append(address)
        return errno.EAFNOSUPPORT if family == socket.AF_INET6 else 0

    monkeypatch.setattr(passt, "_bind", bind)
    passt.check_ports("lan", "tcp", "", [80])
    assert asked == ["::", "0.0.0.0"]
