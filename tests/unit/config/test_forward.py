"""`forward` of a network: which entries there can be, and what is said of others."""

from __future__ import annotations

import pytest

from vmservice.config.forward import PORTS_MAX, parse_forward, read_forwards
from vmservice.config.reader import Mistakes, TableReader
from vmservice.errors import ConfigError, raise_all


def read_value(value: object, taken: set[tuple[str, int]]) -> tuple[str, ...]:
    mistakes = Mistakes()
    reader = TableReader("/etc/vmservice/web.toml", {"network[0]": {"forward": value}}, mistakes)
    entries = read_forwards(reader, "network[0]", taken)
    raise_all(mistakes.errors)
    return entries


def read(*entries: object) -> tuple[str, ...]:
    return read_value(list(entries), set())


@pytest.mark.parametrize(
    ("text", "address", "host", "guest", "count", "protocol"),
    [
        ("8080:80/tcp", "", 8080, 80, 1, "tcp"),
        ("8080:80", "", 8080, 80, 1, "tcp"),
        ("53/udp", "", 53, 53, 1, "udp"),
        ("22", "", 22, 22, 1, "tcp"),
        ("8000-8009:80-89/tcp", "", 8000, 80, 10, "tcp"),
        ("8000-8009", "", 8000, 8000, 10, "tcp"),
        ("127.0.0.1:8080:80/tcp", "127.0.0.1", 8080, 80, 1, "tcp"),
        ("192.0.2.1:22", "192.0.2.1", 22, 22, 1, "tcp"),
        ("[::1]:8080:80/udp", "::1", 8080, 80, 1, "udp"),
        ("1-65535", "", 1, 1, 65535, "tcp"),
    ],
)
def test_an_entry(text: str, address: str, host: int, guest: int, count: int, protocol: str) -> None:
    entry = parse_forward(text)
    assert (entry.address, entry.host, entry.guest, entry.count) == (address, host, guest, count)
    assert entry.protocol == protocol
    assert list(entry.ports) == list(range(host, host + count))
    again = parse_forward(str(entry))
    assert str(again) == str(entry)
    assert (again.address, again.host, again.guest, again.count) == (address, host, guest, count)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "ports from 1 to 65535"),
        ("http:80", "ports from 1 to 65535"),
        ("0:80", "ports from 1 to 65535"),
        ("65536", "ports from 1 to 65535"),
        ("8080:", "ports from 1 to 65535"),
        (":80", "ports from 1 to 65535"),
        ("8080:80:81", "ports from 1 to 65535"),
        ("+80", "ports from 1 to 65535"),
        ("٨٠", "ports from 1 to 65535"),
        ("80-", "ports from 1 to 65535"),
        ("-80", "ports from 1 to 65535"),
        (" 80", "ports from 1 to 65535"),
        ("8080:80/sctp", "a protocol behind the slash, tcp or udp"),
        ("8080:80/", "a protocol behind the slash, tcp or udp"),
        ("8080:80/tcp/udp", "a protocol behind the slash, tcp or udp"),
        ("90-80", "a range of ports from the lower to the higher, 80-90"),
        ("8000-8009:80", "as many ports of the guest as of the host: 10 and not 1"),
        ("80:8000-8009", "as many ports of the guest as of the host: 1 and not 10"),
        ("300.0.0.1:80", "an IP address in front of the ports"),
        ("example.org:80", "an IP address in front of the ports"),
        ("[::1:80", "an IP address in front of the ports"),
        ("[127.0.0.1]:80", "an IP address in front of the ports"),
        ("127.0.0.1", "an IP address in front of the ports"),
        ("127.0.0.1\0:80", "an IP address in front of the ports"),
    ],
)
def test_what_is_no_entry(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r'^/etc/vmservice/web.toml: network\[0\].forward has ".*"; expected ') as refused:
        read(text)
    assert f"expected {said}" in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (("8080:80", "8080:81"), '"8080:81"; expected each port of the host once; 8080/tcp is forwarded already'),
        (("8000-8009", "8005/tcp"), '"8005/tcp"; expected each port of the host once; 8005/tcp is forwarded already'),
        (("127.0.0.1:80", "192.0.2.1:80"), '"192.0.2.1:80"; expected each port of the host once; 80/tcp is forwarded already'),
        ((80,), "has 80; expected strings only"),
        (tuple(map(str, range(1, 66))), "at most 64 entries"),
        (("1-1025",), f"at most {PORTS_MAX} ports in all, and not 1025"),
    ],
)
def test_what_they_cannot_be_together(entries: tuple[object, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(*entries)
    assert said in str(refused.value)


def test_tcp_and_udp_have_ports_of_their_own() -> None:
    assert read("53:5353/tcp", "53:5353/udp") == ("53:5353/tcp", "53:5353/udp")


def test_two_networks_share_the_hosts_ports() -> None:
    taken: set[tuple[str, int]] = set()
    read_value(["8080:80"], taken)
    with pytest.raises(ConfigError, match="8080/tcp is forwarded already"):
        read_value(["8000-8100"], taken)


def test_it_is_an_array() -> None:
    with pytest.raises(ConfigError, match=r'network\[0\].forward is "8080:80"; expected an array of strings'):
        read_value("8080:80", set())


def test_each_wrong_entry_is_named() -> None:
    with pytest.raises(ConfigError) as refused:
        read("80", "http", "80/tcp", "0")
    assert [str(one).partition(": ")[2].partition(";")[0] for one in refused.value.errors] == [  # type: ignore[attr-defined]
        *('network[0].forward has "http"', 'network[0].forward has "80/tcp"', 'network[0].forward has "0"')
    ]
