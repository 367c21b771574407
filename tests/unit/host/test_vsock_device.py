"""The number by which the host knows a guest: chosen, kept, and taken by others."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest
from support.vhost_double import VhostKernel

from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host import vhost, vsock_device
from vmservice.host.vsock_device import VsockEnd, chosen_cid


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[VhostKernel]:
    kernel = VhostKernel()
    monkeypatch.setattr(vhost, "ioctl", kernel.ioctl)
    monkeypatch.setattr(vsock_device, "open_device", lambda kind, wanted_by: kernel.open(kind))
    yield kernel
    kernel.close()


def end_of(name: str, wanted: int = 0) -> VsockEnd:
    end = VsockEnd(name, wanted)
    end.open()
    return end


def test_a_name_has_the_same_number_at_every_start(kernel: VhostKernel) -> None:
    found = []
    for _ in range(2):
        end = end_of("web")
        found.append(end.cid)
        assert kernel.has_cid(end.cid)
        end.close()
    assert found == [chosen_cid("web")] * 2


def test_chosen_numbers_leave_the_small_ones_to_people() -> None:
    chosen = {chosen_cid(f"web{number}") for number in range(1000)}
    assert len(chosen) == 1000
    assert min(chosen) >= 1 << 16
    assert max(chosen) < 1 << 31


def test_another_is_chosen_where_that_is_taken(kernel: VhostKernel) -> None:
    first, second = end_of("web"), end_of("web")
    assert second.cid == chosen_cid("web", 1)
    first.close()
    second.close()


def test_one_that_the_operator_wants_is_not_replaced(kernel: VhostKernel) -> None:
    first = end_of("web", 42)
    assert first.cid == 42
    with pytest.raises(HostError) as raised:
        end_of("db", 42)
    said = "vsock.cid is 42, which another virtual machine on this host has; one of its own is expected, or 0 for one that is"
    assert str(raised.value) == f"{said} chosen"
    assert [device.is_open for device in kernel.devices] == [True, False]
    first.close()


def test_where_none_is_left(kernel: VhostKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock_device, "chosen_cid", lambda name, attempt: 100 + attempt % 2)
    ends = [end_of("a"), end_of("b")]
    with pytest.raises(HostError, match="no CID is left for \\[vsock\\]: 64 were tried"):
        end_of("c")
    for end in ends:
        end.close()


def test_the_next_guest_has_the_number_of_the_last_and_none_of_its_connections(kernel: VhostKernel) -> None:
    other = end_of("web")
    end = end_of("web")
    cid, device = end.cid, kernel.devices[-1]
    other.close()
    end.renew()
    assert end.cid == cid != chosen_cid("web")
    assert not device.is_open
    assert kernel.devices[-1].cid == cid
    end.close()


def test_a_number_that_somebody_takes_meanwhile(kernel: VhostKernel) -> None:
    end = end_of("web", 42)
    end.close()
    other = end_of("db", 42)
    with pytest.raises(HostError, match=r"vsock\.cid is 42, which another virtual machine"):
        end.open()
    assert end.vhost.fd == -1
    other.close()
    end.open()
    assert end.fds() == {"vhost-vsock": end.vhost.fd}
    end.close()


def test_what_else_the_kernel_refuses_is_said_as_it_is(kernel: VhostKernel) -> None:
    kernel.refuse[0x4008AF60] = errno.EINVAL
    with pytest.raises(HostError, match="VHOST_VSOCK_SET_GUEST_CID for the sockets of web failed: Invalid argument"):
        end_of("web")


def test_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(errno.ENODEV, "")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostFacilityMissing, match="`modprobe vhost_vsock` loads its module"):
        end_of("web")
