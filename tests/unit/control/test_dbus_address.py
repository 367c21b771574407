"""Addresses of a bus, as the D-Bus specification writes them."""

from __future__ import annotations

import pytest

from vmservice.control.dbus_address import checked_address, socket_names
from vmservice.errors import UsageError


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("unix:path=/run/dbus/system_bus_socket", ["/run/dbus/system_bus_socket"]),
        ("unix:path=/a%20b%c3%a9,guid=0123", ["/a bé"]),
        ("unix:abstract=/tmp/x", ["\0/tmp/x"]),
        ("tcp:host=localhost,port=1;unix:path=/a;unix:path=/b", ["/a", "/b"]),
    ],
)
def test_the_sockets_that_an_address_names(address: str, names: list[str]) -> None:
    assert socket_names(checked_address(address)) == names


def test_the_runtime_directory_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert socket_names("unix:runtime=yes") == ["/run/user/7/bus"]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("", "it is empty"),
        ("path=/a", "names no transport"),
        ("unix:path", "has no value"),
        ("unix:path=/a b", "characters that are not escaped"),
        ("unix:path=/a%2", "malformed"),
        ("unix:path=/a%zz", "malformed"),
        ("unix:guid=0", "needs path="),
        ("tcp:host=localhost,port=1", "has no unix socket"),
    ],
)
def test_a_malformed_address_is_said_to_be_one(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        checked_address(address)
