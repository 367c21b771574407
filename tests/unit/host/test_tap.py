"""Real taps in a namespace of the test's own: attached, set up, refused, deleted and made anew. The ABI by a C compiler."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.net_space import Wire, frame, ip, make_tap, net_space

from vmservice.errors import ConfigError, HostError, HostFacilityMissing, NotPermitted
from vmservice.host import interfaces, tap, tap_maker
from vmservice.host.tap import Tap, TapGone

NUMBERS = {name: getattr(tap, name) for name in vars(tap) if name.startswith(("TUN", "IFF_"))} | {
    name: getattr(module, name)
    for module, names in (
        (interfaces, ("SIOCGIFFLAGS", "SIOCGIFMTU", "SIOCETHTOOL", "ETHTOOL_GDRVINFO", "IFF_UP")),
        (tap_maker, ("TUNSETPERSIST", "TUNSETOWNER", "SIOCSIFFLAGS", "SIOCSIFMTU", "SIOCSIFHWADDR", "SIOCGIFINDEX")),
        (tap_maker, ("SIOCBRADDIF", "ARPHRD_ETHER", "NETLINK_ROUTE", "RTM_DELLINK", "NLM_F_REQUEST", "NLM_F_ACK")),
    )
    for name in names
}


@pytest.fixture
def space() -> Iterator[None]:
    with net_space():
        yield


def test_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is there")
    lines = [f'printf("%s %lu\\n", "{name}", (unsigned long)(unsigned int){name});' for name in NUMBERS]
    lines += ['printf("ifreq %zu\\n", sizeof(struct ifreq));', 'printf("drvinfo %zu\\n", sizeof(struct ethtool_drvinfo));']
    lines += ['printf("header %zu\\n", sizeof(struct virtio_net_hdr_mrg_rxbuf));']
    headers = ["stdio.h", "sys/ioctl.h", "net/if.h", "net/if_arp.h"]
    headers += [f"linux/{name}.h" for name in ("if_tun", "sockios", "ethtool", "virtio_net", "netlink", "rtnetlink")]
    source = "".join(f"#include <{header}>\n" for header in headers) + "\n".join(
        ["int main(void) {", *lines, "return 0; }", ""]
    )
    (tmp_path / "abi.c").write_text(source)
    subprocess.run(["cc", "-o", tmp_path / "abi", tmp_path / "abi.c"], check=True)
    said = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in (line.split() for line in said.splitlines())}
    sizes = {"ifreq": 40, "drvinfo": 196, "header": tap.HEADER_BYTES}
    assert found == NUMBERS | sizes


def flags(fd: int) -> int:
    (found,) = struct.unpack_from("<16xH", fcntl.ioctl(fd, tap.TUNGETIFF, bytes(40)))
    return int(found)


def header_bytes(fd: int) -> int:
    (found,) = struct.unpack("<i", fcntl.ioctl(fd, 0x800454D7, bytes(4)))
    return int(found)


@pytest.mark.usefixtures("space")
def test_frames_have_a_header_of_virtios() -> None:
    make_tap("vt-web")
    one = Tap("vt-web", "network lan", 1)
    assert flags(one.queue_fds[0]) & tap.IFF_VNET_HDR
    assert header_bytes(one.queue_fds[0]) == 12
    assert (one.mtu, one.is_attached(), list(one.fds())) == (1500, True, ["queue0"])
    wire = Wire("vt-web")
    wire.wait_running()
    os.writev(one.queue_fds[0], [bytes(12), frame(1)])
    assert wire.receive() == frame(1)
    wire.send(frame(2))
    assert os.read(one.queue_fds[0], 1000)[12:] == frame(2)
    wire.close()
    one.close()


@pytest.mark.usefixtures("space")
def test_one_queue_of_a_tap_that_may_have_more() -> None:
    make_tap("vt-web", "multi_queue")
    first = Tap("vt-web", "network lan", 1)
    second = Tap("vt-web", "network lan", 2)
    second.set_pairs(1)
    assert [bool(flags(fd) & tap.IFF_DETACH_QUEUE) for fd in second.queue_fds] == [False, True]
    second.set_pairs(2)
    assert [bool(flags(fd) & tap.IFF_DETACH_QUEUE) for fd in second.queue_fds] == [False, False]
    first.close()
    second.close()


@pytest.mark.usefixtures("space")
def test_what_is_of_no_use() -> None:
    make_tap("vt-web")
    ip("tuntap add tun0 mode tun")
    ip("link add br0 type bridge")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(TapGone, match=r"^network lan: there is no tap vt-no$"):
        Tap("vt-no", "network lan", 1)
    assert interfaces.look_at("vt-no") is None, "none is made"
    with pytest.raises(
        ConfigError, match=r"^network lan: the tap vt-web has one queue, and queues is 2; expected 1, or a tap with"
    ):
        Tap("vt-web", "network lan", 2)
    with pytest.raises(ConfigError, match=r"^network lan: tun0 is a tun device, which carries packets; expected a tap$"):
        Tap("tun0", "network lan", 1)
    with pytest.raises(ConfigError, match=r"^network lan: br0 is an interface of another kind; expected a tap$"):
        Tap("br0", "network lan", 1)
    one = Tap("vt-web", "network lan", 1)
    with pytest.raises(HostError, match=r"^network lan: the tap vt-web is in use by another program; it has one queue"):
        Tap("vt-web", "network lan", 1)
    one.close()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.usefixtures("space")
def test_a_tap_of_another_account() -> None:
    make_tap("vt-web", "user 4242")
    fds = [os.open(tap.DEVICE, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            os.setresgid(4243, 4243, 4243)
            os.setresuid(4243, 4243, 4243)
            said = []
            for fd, name, mtu in ((fds[0], "vt-web", 1500), (fds[1], "vt-no", 0)):
                try:
                    Tap(name, "network lan", 1, [fd], mtu)
                except HostError as error:
                    said.append((type(error), str(error)))
            assert said == [
                (
                    NotPermitted,
                    "network lan: the tap vt-web belongs to another account;"
                    " expected the account with the number 4243, which runs this VM",
                ),
                (
                    TapGone,
                    "network lan: the tap vt-no is not there, or does not belong to the account with the number 4243,"
                    " which runs this VM",
                ),
            ], said
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    for fd in fds:
        os.close(fd)


@pytest.mark.usefixtures("space")
def test_deleted_and_made_anew() -> None:
    make_tap("vt-web", "multi_queue")
    two = Tap("vt-web", "network lan", 2)
    two.set_offload(tap.TUN_F_CSUM | tap.TUN_F_TSO4)
    two.set_carrier(False)
    two.set_pairs(1)
    ip("link del vt-web")
    assert not two.is_attached()
    with pytest.raises(TapGone, match=r"^network lan: there is no tap vt-web$"):
        two.attach()
    with pytest.raises(TapGone, match="the tap vt-web is gone"):
        two.set_offload(0)
    for pairs in (2, 1):
        with pytest.raises(TapGone, match="the tap vt-web is gone"):
            two.set_pairs(pairs)
    make_tap("vt-web", "multi_queue")
    two.attach()
    assert two.is_attached()
    assert header_bytes(two.queue_fds[0]) == 12
    assert [bool(flags(fd) & tap.IFF_DETACH_QUEUE) for fd in two.queue_fds] == [False, True]
    said = subprocess.run(["ip", "link", "show", "vt-web"], check=True, capture_output=True, text=True).stdout
    assert "NO-CARRIER" in said
    two.set_carrier(True)
    said = subprocess.run(["ip", "link", "show", "vt-web"], check=True, capture_output=True, text=True).stdout
    assert "NO-CARRIER" not in said
    two.close()


def test_a_host_without_taps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(HostFacilityMissing, match=r"network lan: this host has no .*/tun; `modprobe tun` loads its module"):
        Tap("vt-web", "network lan", 1)


def test_the_kernel_moves_frames_where_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "vhost-net"
    monkeypatch.setattr(tap, "VHOST_DEVICE", str(device))
    assert tap.open_vhosts(2) == []
    device.touch()
    fds = tap.open_vhosts(2)
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == [str(device)] * 2
    for fd in fds:
        os.close(fd)
