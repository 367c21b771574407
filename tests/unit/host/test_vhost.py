"""The kernel's vhost as we spell it: numbers and structs against <linux/vhost.h>, and what each refusal reads like."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.guest_ram import MIB, guest_ram
from support.vhost_double import FEATURES, GET_BASE, SET_BACKEND, SET_CID, SET_MEM_TABLE, SET_OWNER, VhostDevice, VhostKernel

from vmservice.errors import HostError, HostFacilityMissing, NotPermitted
from vmservice.host import vhost
from vmservice.host.vhost import VhostNet, VhostVsock
from vmservice.memory.guest_memory import GuestMemory

# By hand, from the kernel's documentation and strace's tables.
NUMBERS = {
    "VHOST_GET_FEATURES": 0x8008AF00,
    "VHOST_SET_FEATURES": 0x4008AF00,
    "VHOST_SET_OWNER": 0xAF01,
    "VHOST_SET_MEM_TABLE": 0x4008AF03,
    "VHOST_SET_VRING_NUM": 0x4008AF10,
    "VHOST_SET_VRING_ADDR": 0x4028AF11,
    "VHOST_SET_VRING_BASE": 0x4008AF12,
    "VHOST_GET_VRING_BASE": 0xC008AF12,
    "VHOST_SET_VRING_KICK": 0x4008AF20,
    "VHOST_SET_VRING_CALL": 0x4008AF21,
    "VHOST_SET_VRING_ERR": 0x4008AF22,
    "VHOST_NET_SET_BACKEND": 0x4008AF30,
    "VHOST_VSOCK_SET_GUEST_CID": 0x4008AF60,
    "VHOST_VSOCK_SET_RUNNING": 0x4004AF61,
}
STRUCTS = {
    "vhost_vring_state": vhost.VRING_STATE,
    "vhost_vring_file": vhost.VRING_FILE,
    "vhost_vring_addr": vhost.VRING_ADDR,
    "vhost_memory": vhost.MEMORY,
    "vhost_memory_region": vhost.MEMORY_REGION,
}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[VhostKernel]:
    kernel = VhostKernel()
    monkeypatch.setattr(vhost, "ioctl", kernel.ioctl)
    yield kernel
    kernel.close()


@pytest.fixture
def sockets(kernel: VhostKernel) -> Iterator[VhostVsock]:
    device = VhostVsock(kernel.open("vhost-vsock"), "the sockets of web")
    yield device
    device.close()


def test_every_number_is_the_one_of_the_header() -> None:
    ours = {name: value for name, value in vars(vhost).items() if name.startswith("VHOST_") and name != "VHOST_FILE_UNBIND"}
    assert ours == NUMBERS


def test_everything_equals_the_header_of_this_machine(tmp_path: Path) -> None:
    """Numbers, struct sizes and the order of their fields, as the C compiler sees them."""
    if shutil.which("gcc") is None or not Path("/usr/include/linux/vhost.h").exists():
        pytest.skip("no C compiler or no <linux/vhost.h> here")
    lines = [f'printf("{name} %lu\\n", (unsigned long) {name});' for name in NUMBERS]
    lines += [f'printf("{name} %lu\\n", (unsigned long) sizeof(struct {name}));' for name in STRUCTS]
    fields = ("index", "flags", "desc_user_addr", "used_user_addr", "avail_user_addr", "log_guest_addr")
    lines += [f'printf("{field} %lu\\n", (unsigned long) offsetof(struct vhost_vring_addr, {field}));' for field in fields]
    memory = ("guest_phys_addr", "memory_size", "userspace_addr", "flags_padding")
    lines += [f'printf("{field} %lu\\n", (unsigned long) offsetof(struct vhost_memory_region, {field}));' for field in memory]
    source = tmp_path / "abi.c"
    includes = "#include <stddef.h>\n#include <stdio.h>\n#include <linux/vhost.h>\n"
    source.write_text(includes + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run(["gcc", "-o", tmp_path / "abi", source], check=True, timeout=60)
    output = subprocess.run([tmp_path / "abi"], check=True, capture_output=True, text=True, timeout=60).stdout
    header = {name: int(value) for name, value in (line.split() for line in output.splitlines())}
    ours = NUMBERS | {name: layout.size for name, layout in STRUCTS.items()}
    ours |= dict(zip(fields, (0, 4, 8, 16, 24, 32), strict=True)) | dict(zip(memory, (0, 8, 16, 24), strict=True))
    assert header == ours


def test_a_driver_never_has_what_it_could_not_use(sockets: VhostVsock, kernel: VhostKernel) -> None:
    """The log, and addresses of an IOMMU, which would be asked of us; and vhost-net's own header."""
    sockets.look()
    assert sockets.features == FEATURES["vhost-vsock"] & ~(1 << 26 | 1 << 33)
    net = VhostNet(kernel.open("vhost-net"), "network0", -1)
    net.look()
    assert net.features == 1 << 32 | 1 << 29 | 1 << 28 | 1 << 15
    net.own()
    net.set_features(0xFFFF_FFFF_FFFF_FFFF)
    assert kernel.devices[1].features == net.features
    net.close()


def test_guest_memory_is_shown_by_our_addresses_and_can_be_closed_again(sockets: VhostVsock, kernel: VhostKernel) -> None:
    memory = guest_ram((0, 2 * MIB), (4 << 30, MIB))
    memory.write((4 << 30) + 0x1234, b"here")
    sockets.own()
    sockets.set_memory(memory.regions)
    table = kernel.devices[0].regions
    assert [(gpa, size) for gpa, size, _ in table] == [(0, 2 * MIB), (4 << 30, MIB)]
    assert vhost.own_address((4 << 30) + 0x1234, memory.regions) == table[1][2] + 0x1234
    with pytest.raises(ValueError, match="guest address 0x300000 is not in guest memory"):
        vhost.own_address(0x30_0000, memory.regions)
    memory.close()


def test_sixty_four_regions_fit_into_a_table(sockets: VhostVsock, kernel: VhostKernel) -> None:
    """fcntl.ioctl takes no more than 1,024 bytes in other ways."""
    memory = guest_ram(*((number * MIB, 4096) for number in range(64)))
    sockets.own()
    sockets.set_memory(memory.regions)
    assert len(kernel.devices[0].regions) == 64
    memory.close()


def test_one_owner_however_often_it_is_asked(sockets: VhostVsock, kernel: VhostKernel) -> None:
    sockets.own()
    sockets.own()
    assert kernel.asked.count(SET_OWNER) == 1


def test_where_a_virtqueue_goes_on_is_what_the_kernel_says(sockets: VhostVsock, kernel: VhostKernel) -> None:
    sockets.own()
    kernel.devices[0].rings[1].base = 0xFFFF
    assert sockets.base(1) == 0xFFFF


@pytest.mark.parametrize(
    ("request_number", "what", "act"),
    [
        (SET_OWNER, "VHOST_SET_OWNER", lambda device: device.own()),
        (SET_MEM_TABLE, "VHOST_SET_MEM_TABLE", lambda device: device.set_memory([])),
        (SET_CID, "VHOST_VSOCK_SET_GUEST_CID", lambda device: device.set_cid(3)),
        (GET_BASE, "VHOST_GET_VRING_BASE", lambda device: device.base(0)),
    ],
)
def test_a_refusal_names_the_operation_the_device_and_the_reason(
    sockets: VhostVsock, kernel: VhostKernel, request_number: int, what: str, act: Callable[[VhostVsock], object]
) -> None:
    kernel.refuse[request_number] = errno.E2BIG
    with pytest.raises(HostError) as raised:
        act(sockets)
    assert str(raised.value) == f"{what} for the sockets of web failed: Argument list too long (errno 7)"
    assert raised.value.errno == errno.E2BIG


def test_a_pair_of_a_network_is_tied_to_its_tap_and_let_go_of_it(kernel: VhostKernel) -> None:
    memory, tap = guest_ram(), os.memfd_create("tap")
    net = VhostNet(kernel.open("vhost-net"), "network0", tap)
    net.look()
    device = set_up(net, kernel, memory)
    net.run([0, 1])
    assert [ring.is_running for ring in device.rings] == [True, True]
    net.halt()
    assert [ring.is_running for ring in device.rings] == [False, False]
    net.halt()
    assert kernel.asked.count(SET_BACKEND) == 4
    net.run([1])
    assert [ring.is_running for ring in device.rings] == [False, True]
    net.halt()
    net.close()
    os.close(tap)
    memory.close()


def test_sockets_run_with_both_virtqueues_or_not_at_all(sockets: VhostVsock, kernel: VhostKernel) -> None:
    memory = guest_ram()
    device = set_up(sockets, kernel, memory)
    sockets.run([0])
    assert not device.rings[0].is_running
    sockets.run([0, 1])
    assert device.rings[1].is_running
    sockets.halt()
    assert not device.rings[1].is_running
    memory.close()


def set_up(device: vhost.Vhost, kernel: VhostKernel, memory: GuestMemory) -> VhostDevice:
    device.own()
    device.set_features(1 << 32)
    device.set_memory(memory.regions)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    for index in range(2):
        gpa = 0x1000 * (3 * index + 1)
        addresses = (gpa, gpa + 0x1000, gpa + 0x2000)
        device.set_ring(index, 16, 0, addresses, memory.regions, kick=eventfd, call=eventfd, error=eventfd)
    os.close(eventfd)
    return kernel.devices[-1]


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (
            errno.ENOENT,
            HostFacilityMissing,
            "[vsock] needs /dev/vhost-vsock, which this host does not have (No such file or directory); `modprobe vhost_vsock`"
            " loads its module, and a line in /etc/modules-load.d does at each start of the host",
        ),
        (
            errno.EACCES,
            NotPermitted,
            "[vsock] needs /dev/vhost-vsock, which this account may not open (Permission denied);"
            " its group may, which is kvm on most hosts",
        ),
        (errno.EMFILE, HostError, "[vsock] needs /dev/vhost-vsock, which cannot be opened: Too many open files (errno 24)"),
    ],
)
def test_a_device_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HostError], said: str) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError) as raised:
        vhost.open_device("vhost-vsock", "[vsock]")
    assert type(raised.value) is kind
    assert str(raised.value) == said


def test_the_kernels_own_agree(tmp_path: Path) -> None:
    """Where this machine has them: features are there, and a descriptor can be owned."""
    if not Path("/dev/vhost-vsock").exists():
        pytest.skip("no /dev/vhost-vsock here")
    device = VhostVsock(vhost.open_device("vhost-vsock", "this test"), "the sockets of this test")
    try:
        device.look()
        assert device.features & 1 << 32
        device.own()
        memory = guest_ram()
        device.set_memory(memory.regions)
    finally:
        device.close()
    memory.close()


def test_structs_are_packed_as_in_the_header() -> None:
    sizes = {name: layout.size for name, layout in STRUCTS.items()}
    assert sizes == {
        "vhost_vring_state": 8,
        "vhost_vring_file": 8,
        "vhost_vring_addr": 40,
        "vhost_memory": 8,
        "vhost_memory_region": 32,
    }
    assert vhost.VRING_FILE.pack(1, -1) == b"\1\0\0\0\xff\xff\xff\xff", "an int, -1 where there is no descriptor"
