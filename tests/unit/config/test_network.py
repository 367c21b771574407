"""`[[network]]`: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.net_space import ip, make_tap, net_space

from vmservice.config.load import check_files, load_config
from vmservice.config.sections import network
from vmservice.config.sections.network import NetworkDevice
from vmservice.errors import ConfigError

TAP = '[[network]]\ntap = "vt-web"\n'


def load(folder: Path, text: str, name: str = "web") -> list[NetworkDevice]:
    file = folder / "demo.toml"
    file.write_text(f'[kernel]\npath = "k"\n{text}')
    return [device for device in load_config(name, str(file)).devices if isinstance(device, NetworkDevice)]


def values(device: NetworkDevice) -> dict[str, object]:
    return {name: getattr(device, name) for name in device.__slots__}


def test_the_defaults(tmp_path: Path) -> None:
    first, second = load(tmp_path, TAP + "[[network]]\n")
    assert values(first) == {
        "name": "network0",
        "tap": "vt-web",
        "bridge": "",
        "makes_tap": False,
        "mac": network.default_mac("web", "network0"),
        "mtu": 0,
        "queues": 1,
        "offload": True,
        "link": "up",
        "forward": (),
        "plug": "vmservice.plug.network",
    }
    assert (second.name, second.makes_tap, second.tap) == ("network1", True, network.default_tap("web", "network1"))


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    keys = 'mac = "02:00:5E:00:53:01"\nbridge = "br0"\nmtu = 9000\nqueues = 4\noffload = false\nlink = "down"\nmode = "tap"\n'
    (lan,) = load(tmp_path, f'{TAP}name = "lan"\n{keys}')
    assert values(lan) == {
        "name": "lan",
        "tap": "vt-web",
        "bridge": "br0",
        "makes_tap": True,
        "mac": bytes.fromhex("02005e005301"),
        "mtu": 9000,
        "queues": 4,
        "offload": False,
        "link": "down",
        "forward": (),
        "plug": "vmservice.plug.network",
    }


def test_the_address_follows_from_host_vm_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "machine_id", lambda: bytes(range(16)))
    addresses = {network.default_mac(vm, device) for vm in ("web", "db") for device in ("network0", "lan")}
    monkeypatch.setattr(network, "machine_id", lambda: bytes(16))
    addresses.add(network.default_mac("web", "network0"))
    assert len(addresses) == 5
    assert all(address[0] & 3 == 2 and len(address) == 6 for address in addresses)
    assert network.default_mac("web", "network0") in addresses, "the same at each start"


def test_the_name_of_a_tap_is_one_that_linux_takes() -> None:
    names = [network.default_tap(vm, "network0") for vm in ("web", "w" * 64, "a.b_c-d", "web2")]
    assert all(name.startswith("vt-") and len(name) <= 15 for name in names)
    assert len(set(names)) == len(names)
    assert names[2].startswith("vt-a-b-c-d-")
    assert network.default_tap("web", "lan", is_bridged=True).startswith("vb-web-"), "networkd's .network for vt- has no bridge"


NAME = "expected the name of an interface, up to 15 characters without / : % and spaces"
BYTES = 'expected six bytes as in "02:00:5e:00:53:01"'
WORDS = {
    '[[network]]\nmode = "bridge"': 'network[0].mode is "bridge"; expected "tap" or "passt"',
    '[[network]]\ntap = "vt/web"': f'network[0].tap is "vt/web"; {NAME}',
    '[[network]]\ntap = "sixteen-letters."': f'network[0].tap is "sixteen-letters."; {NAME}',
    '[[network]]\nbridge = "br 0"': f'network[0].bridge is "br 0"; {NAME}',
    TAP + 'mac = "02:00:00:00:00"': f'network[0].mac is "02:00:00:00:00"; {BYTES}',
    TAP + 'mac = "02:00:00:00:00:0g"': f'network[0].mac is "02:00:00:00:00:0g"; {BYTES}',
    TAP + 'mac = "2:0:0:0:0:1"': f'network[0].mac is "2:0:0:0:0:1"; {BYTES}',
    TAP + 'mac = "01:00:5e:00:00:01"': (
        'network[0].mac is "01:00:5e:00:00:01"; expected an address of one station:'
        " a multicast address, with an odd first byte, is none"
    ),
    TAP + 'mac = "00:00:00:00:00:00"': 'network[0].mac is "00:00:00:00:00:00"; expected an address that is not all zeros',
    TAP + 'name = "a"\nmac = "02:00:00:00:00:01"\n[[network]]\nmac = "02:00:00:00:00:01"': (
        'network[1].mac is "02:00:00:00:00:01"; expected an address of its own; a has 02:00:00:00:00:01 already'
    ),
    TAP + TAP: 'network[1].tap is "vt-web"; expected a tap of its own; network0 has vt-web already',
    TAP + 'name = "a"\n[[network]]\nname = "a"': (
        'two [[network]] are called "a"; expected a name of its own in network[1].name'
    ),
    TAP + "queues = 0": "network[0].queues is 0; expected a whole number from 1 to 8",
    TAP + "mtu = 67": "network[0].mtu is 67; expected a whole number from 68 to 65535",
    TAP + 'link = "off"': 'network[0].link is "off"; expected "up" or "down"',
    TAP + 'offload = "on"': 'network[0].offload is "on"; expected true or false',
}


@pytest.mark.parametrize("text", WORDS)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text + "\n")
    assert str(caught.value) == f"{tmp_path}/demo.toml: {WORDS[text]}"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('mode = "tap"', "tap is missing; expected one that is there: taps are made for VMs of the system only"),
        ('bridge = "br0"', 'bridge is "br0"; expected none in a user\'s own VM: taps are made for VMs of the system only'),
    ],
)
def test_no_tap_is_made_for_a_users_own_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, said: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "vmservice/web.toml"
    file.parent.mkdir()
    file.write_text(f'[kernel]\npath = "k"\n[[network]]\n{keys}\n')
    with pytest.raises(ConfigError) as caught:
        load_config("web", str(file))
    assert str(caught.value) == f"{file}: network[0].{said}"
    file.write_text('[kernel]\npath = "k"\n[[network]]\ntap = "vt-web"\n')
    assert load_config("web", str(file)).devices[-1].name == "network0"


def check(folder: Path, text: str) -> None:
    (folder / "k").write_bytes(b"kernel")
    load(folder, text)
    check_files(load_config("web", str(folder / "demo.toml")))


def test_its_tap_is_looked_for(tmp_path: Path) -> None:
    bridged = '[[network]]\nbridge = "br0"\n'
    with net_space():
        check(tmp_path, TAP)  # a namespace without any interface is a unit's
        ip("link add br0 type bridge")
        with pytest.raises(
            ConfigError, match=r"demo\.toml: network network0: there is no tap vt-web; `ip tuntap add` makes one"
        ):
            check(tmp_path, TAP)
        make_tap("vt-web")
        check(tmp_path, TAP + "mtu = 1500\n")
        with pytest.raises(
            ConfigError, match=r"network [a-z0-9]+: mtu is 9000, and the tap vt-web has 1500; expected at most that"
        ):
            check(tmp_path, TAP + "mtu = 9000\n")
        check(tmp_path, bridged)
        with pytest.raises(ConfigError, match=r"network network0: br0 is an interface of the driver bridge; expected a tap"):
            check(tmp_path, '[[network]]\ntap = "br0"\n')
        with pytest.raises(ConfigError, match="lo is another kind of interface; expected a tap"):
            check(tmp_path, '[[network]]\ntap = "lo"\n')
        ip("tuntap add tun0 mode tun")
        with pytest.raises(ConfigError, match="tun0 is a tun device, which carries packets and no frames; expected a tap"):
            check(tmp_path, '[[network]]\ntap = "tun0"\n')
        ip("link del br0")
        with pytest.raises(ConfigError, match="there is no bridge br0; systemd-networkd makes one"):
            check(tmp_path, bridged)
        with pytest.raises(ConfigError, match="vt-web is a tap; expected a bridge"):
            check(tmp_path, '[[network]]\nbridge = "vt-web"\n')
