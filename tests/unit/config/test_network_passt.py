"""`[[network]]` with mode = "passt": what is taken, when it is meant, and the one sentence for all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config.load import load_config
from vmservice.config.sections import network
from vmservice.config.sections.network import NetworkDevice
from vmservice.errors import ConfigError
from vmservice.host import passt

SECTION = '[[network]]\nmode = "passt"\n'


def load(file: Path, text: str, name: str = "web") -> list[NetworkDevice]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'[kernel]\npath = "k"\n{text}')
    return [device for device in load_config(name, str(file)).devices if isinstance(device, NetworkDevice)]


def test_the_defaults(tmp_path: Path) -> None:
    (lan,) = load(tmp_path / "web.toml", SECTION)
    values = {name: getattr(lan, name) for name in lan.__slots__}
    assert values == {
        "name": "network0",
        "tap": "",
        "bridge": "",
        "makes_tap": False,
        "mac": network.default_mac("web", "network0"),
        "mtu": 65520,
        "queues": 1,
        "offload": True,
        "link": "up",
        "forward": (),
        "plug": "vmservice.plug.passt",
    }


def test_several_have_ports_of_their_own(tmp_path: Path) -> None:
    first, second = load(
        tmp_path / "web.toml",
        f'{SECTION}forward = ["8080:80", "53/udp"]\nmtu = 1400\nlink = "down"\n{SECTION}forward = ["53/tcp"]\n',
    )
    assert (first.forward, first.mtu, first.link) == (("8080:80/tcp", "53:53/udp"), 1400, "down")
    assert second.forward == ("53:53/tcp",)


@pytest.mark.parametrize(
    ("text", "plug"),
    [
        ("", network.PASST_PLUG),
        ('tap = "vt-web"\n', network.PLUG),
        ('mode = "tap"\ntap = "vt-web"\n', network.PLUG),
    ],
)
def test_a_users_own_vm_has_it_unless_a_tap_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, plug: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (lan,) = load(tmp_path / "vmservice/web.toml", f"[[network]]\n{text}")
    assert lan.plug == plug
    (lan,) = load(tmp_path / "elsewhere/web.toml", f"[[network]]\n{text}")
    assert lan.plug == network.PLUG


WORDS = {
    f'{SECTION}tap = "vt-web"': 'network[0].tap is "vt-web"; expected none with mode = "passt"',
    f'{SECTION}bridge = "br0"': 'network[0].bridge is "br0"; expected none with mode = "passt"',
    f"{SECTION}queues = 2": 'network[0].queues is 2; expected 1 with mode = "passt", which has one pair of virtqueues',
    f"{SECTION}mtu = 65521": "network[0].mtu is 65521; expected a whole number from 68 to 65520",
    f'{SECTION}forward = ["80/sctp"]': 'network[0].forward has "80/sctp"; expected a protocol behind the slash, tcp or udp',
    f'{SECTION}forward = ["80"]\n{SECTION}forward = ["80"]': 'network[1].forward has "80"; expected each port of the host once',
    f"{SECTION}[memory]\nshared = false": "memory.shared is false; expected true, for passt serves the network network0",
    f"{SECTION}[memory]\nmergeable = true": "memory.mergeable is true; expected false, for passt serves the network network0",
    '[[network]]\nforward = ["8080:80"]': 'network[0].forward is an array; expected none with mode = "tap"',
}


@pytest.mark.parametrize("text", WORDS)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "web.toml", text)
    assert WORDS[text] in str(refused.value)


def test_both_names_are_the_path_of_a_socket(tmp_path: Path) -> None:
    vm = "v" * 20
    load(tmp_path / "vm.toml", f'{SECTION}name = "{"n" * 49}"\n', vm)
    with pytest.raises(ConfigError, match="expected at most 49 letters: with the VM's they are the path of a socket"):
        load(tmp_path / "vm.toml", f'{SECTION}name = "{"n" * 50}"\n', vm)


def test_a_host_without_passt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """check-config, and whatever else looks at what the file points to."""
    file = tmp_path / "web.toml"
    (lan,) = load(file, SECTION)
    monkeypatch.setattr(passt, "PASST", str(tmp_path / "passt"))
    with pytest.raises(
        ConfigError, match=f"^{file}: the network network0 needs passt, and there is no {tmp_path}/passt; Debian"
    ):
        network.check_files(lan, str(file))
    (tmp_path / "passt").write_bytes(b"an old one")
    network.check_files(lan, str(file))
