"""The way to a guest, and ssh in our place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from vmservice.cli import main
from vmservice.client import ssh
from vmservice.client.vms import DeviceFacts, Facts
from vmservice.errors import HostFacilityMissing

VSOCK = DeviceFacts("vsock", "vsock", {"cid": 4711})
PASST = DeviceFacts("network", "network0", {"mode": "passt", "forward": "8080:80/tcp, 2222:22/tcp"})
TAP = DeviceFacts("network", "network0", {"mode": "tap", "tap": "vt-web"})
ALWAYS = ["-o", "HostKeyAlias=vm-web", "-o", "CheckHostIP=no"]


@pytest.fixture
def proxies(tmp_path: Path) -> tuple[str, str]:
    """systemd's and socat, both there."""
    paths = tmp_path / "systemd-ssh-proxy", tmp_path / "socat"
    for path in paths:
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return str(paths[0]), str(paths[1])


def command(devices: Sequence[DeviceFacts], proxies: Sequence[str], login: str = "", words: Sequence[str] = ()) -> list[str]:
    return ssh.ssh_command(Facts("web", devices=tuple(devices)), login, words, proxies)


def test_by_vsock_where_the_guest_has_a_number(proxies: tuple[str, str]) -> None:
    options = ["-o", f"ProxyCommand={proxies[0]} vsock/4711 22", "-o", "ProxyUseFdpass=yes"]
    assert command([TAP, VSOCK], proxies) == ["ssh", *ALWAYS, *options, "--", "vsock/4711"]
    asked = command([VSOCK], proxies, "root", ["uname", "-a"])
    assert asked == ["ssh", "-l", "root", *ALWAYS, *options, "--", "vsock/4711", "uname", "-a"]


def test_by_socat_where_systemd_is_older(proxies: tuple[str, str]) -> None:
    os.unlink(proxies[0])
    options = ["-o", f"ProxyCommand={proxies[1]} - VSOCK-CONNECT:4711:22"]
    assert command([VSOCK], proxies) == ["ssh", *ALWAYS, *options, "--", "vsock/4711"]
    os.unlink(proxies[1])
    with pytest.raises(
        HostFacilityMissing, match="ssh over vsock needs systemd 256 or later, for its systemd-ssh-proxy, or socat"
    ):
        command([VSOCK], proxies)


def test_by_a_port_of_the_host_that_leads_there(proxies: tuple[str, str]) -> None:
    assert command([PASST], proxies) == ["ssh", *ALWAYS, "-p", "2222", "--", "localhost"]


@pytest.mark.parametrize(
    ("forward", "address", "port"),
    [
        ("22", "localhost", "22"),
        ("22:22", "localhost", "22"),
        ("127.0.0.1:2222:22/tcp", "127.0.0.1", "2222"),
        ("[::1]:5:22", "::1", "5"),
        ("53:22/udp, 2220-2229:20-29/tcp", "localhost", "2222"),
    ],
)
def test_a_forwarded_port_may_be_of_one_address(proxies: tuple[str, str], forward: str, address: str, port: str) -> None:
    network = DeviceFacts("network", "network0", {"forward": forward})
    assert command([network], proxies) == ["ssh", *ALWAYS, "-p", port, "--", address]


@pytest.mark.parametrize("forward", ["", "8080:80/tcp", "53:22/udp"])
def test_without_a_way_the_sentence_says_how_to_get_one(proxies: tuple[str, str], forward: str) -> None:
    network = DeviceFacts("network", "network0", {"forward": forward})
    with pytest.raises(HostFacilityMissing, match=r"no way known to the guest of web: give it \[vsock\]"):
        command([TAP, network], proxies)


@pytest.mark.parametrize(
    "forward",
    [
        "-oProxyCommand=id:1:22",
        "-oProxyCommand=id:22:22",
        "[-oProxyCommand=id]:1:22",
        "evil.example:1:22",
        "127.0.0.1:-oProxyCommand=id:22",
        "127.0.0.1:0:22",
        "127.0.0.1:65536:22",
        "127.0.0.1:\N{ARABIC-INDIC DIGIT TWO}:22",
        "1.2.3.4%lo:1:22",
        "8080:80/tcp -v",
    ],
)
def test_what_a_vm_says_of_its_ports_is_no_option_of_ssh(proxies: tuple[str, str], forward: str) -> None:
    network = DeviceFacts("network", "network0", {"forward": forward})
    with pytest.raises(HostFacilityMissing, match=r"the VM web says of a forwarded port that it is .*, which it cannot be"):
        command([network], proxies)


@pytest.mark.parametrize("cid", ["4711", "-oProxyCommand=id", "x", "", 0, -1, 2, (1 << 32) - 1, 1 << 32, True])
def test_what_a_vm_says_of_its_cid_is_a_number_or_nothing(proxies: tuple[str, str], cid: object) -> None:
    with pytest.raises(HostFacilityMissing, match=r"the VM web says of its CID that it is .*, which it cannot be"):
        command([DeviceFacts("vsock", "vsock", {"cid": cid})], proxies)


def test_ports_that_are_no_text(proxies: tuple[str, str]) -> None:
    with pytest.raises(HostFacilityMissing, match="which it cannot be"):
        command([DeviceFacts("network", "network0", {"forward": 22})], proxies)


def test_nobody_is_called_as_an_option_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ssh", "--", "-oProxyCommand=id@web"]) == 64
    assert '"-oProxyCommand=id" cannot be the name of an account' in capsys.readouterr().err


PROGRAM = """
import sys
from vmservice.cli import main
from vmservice.client import ssh
from vmservice.client.vms import DeviceFacts, Facts

async def ask(name, *, user):
    assert (name, user) == ("web", "--user" in sys.argv)
    return Facts("web", devices=(DeviceFacts("network", "n", {"forward": "2222:22/tcp"}),))

ssh._ask = ask
sys.exit(main())
"""


@pytest.mark.parametrize(
    "words", [["ssh", "root@web", "ls", "-l", "--user"], ["--user", "ssh", "root@web", "ls", "-l", "--user"]]
)
def test_it_becomes_ssh_whose_exit_status_is_its_own(tmp_path: Path, words: list[str]) -> None:
    fake = tmp_path / "ssh"
    fake.write_text('#!/bin/sh\necho "$$ $@"\nexit 42\n')
    fake.chmod(0o755)
    program = PROGRAM if words[0] == "--user" else PROGRAM.replace('"--user" in sys.argv', "False")
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 42
    assert said == f"{process.pid} -l root {' '.join(ALWAYS)} -p 2222 -- localhost ls -l --user\n"


@pytest.mark.parametrize("target", ["../web", "root@", "root@a/b", ""])
def test_what_is_no_name(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ssh", target]) == 64
    assert "cannot be the name of a VM" in capsys.readouterr().err
