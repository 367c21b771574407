"""A machine with a network by passt, which is a back end of the test's own: built, paused, reset, ended, whatever that does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disks import waiting
from support.kvm_guest import needs_kvm
from support.net_double import HEADER, NetBackEnd
from support.plugged_vm import PluggedVm, notify, plug_of, start_driver
from support.virtqueue import DriverQueue

from vmservice.board.slot import Plugged
from vmservice.devices.virtio.external import External
from vmservice.errors import HostError, HostFacilityMissing
from vmservice.host import passt as host_passt
from vmservice.plug.external import ExternalBackend, socket_path
from vmservice.vm import state_tree
from vmservice.vm.machine import KvmMachine

pytestmark = [pytest.mark.kvm, needs_kvm]

MAC = "02:00:00:00:00:07"
SECTION = f'[[network]]\nname = "lan"\nmode = "passt"\nmac = "{MAC}"\nforward = ["8080:80"]\n'
# GUEST_CSUM, MTU, MAC, MRG_RXBUF, STATUS, VERSION_1: of what passt has, and ours
FEATURES = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 15 | 1 << 16 | 1 << 32
LINK_UP, LINK_DOWN = b"\1\0", b"\0\0"
FRAME = bytes(range(64))
ENDED = "the passt of the network lan has ended; the guest's link is down until it is there again"
AGAIN = "the passt of the network lan is there again"


@pytest.fixture
def passt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NetBackEnd]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "vmservice" / "demo"))
    program = tmp_path / "passt"
    program.write_bytes(b"vhost-user")
    monkeypatch.setattr(host_passt, "PASST", str(program))
    path = Path(socket_path("passt", "demo", "lan"))
    path.parent.mkdir(parents=True)
    passt = NetBackEnd(path)
    yield passt
    passt.close()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_has_the_network_and_gets_another_after_a_reset(tmp_path: Path, passt: NetBackEnd, transport: str) -> None:
    vm = PluggedVm(tmp_path, transport, SECTION)
    values = {
        "mode": "passt",
        "mac": MAC,
        "mtu": 65520,
        "link": "up",
        "forward": "8080:80/tcp",
        "socket": socket_path("passt", "demo", "lan"),
        "vhost_user": True,
    }
    assert ("network", "lan", values) in vm.backends.details()
    for count in range(1, 4):
        machine = vm.build()
        virtio = plug_of(machine, "lan").transport.virtio
        assert isinstance(virtio.device, External)
        assert virtio.device.device_type == 1
        assert virtio.offered_features == FEATURES
        assert virtio.device.read_config(0, 12) == bytes.fromhex("020000000007") + LINK_UP + b"\1\0" + b"\xf0\xff"
        machine.start()
        assert any(passt.connections == count for _ in waiting())
        machine.pause()
        assert state_tree.collect(machine, vm.kvm)["devices"]["lan"]["device"]["queue_sizes"] == [1024, 1024]
        machine.resume()
        machine.close()
    vm.close()
    assert vm.warnings == []


def test_the_driver_sees_its_link_go_down_and_up(tmp_path: Path, passt: NetBackEnd) -> None:
    vm = PluggedVm(tmp_path, "pci", SECTION)
    machine = vm.build()
    machine.start()
    plug = plug_of(machine, "lan")
    start_driver(plug, machine.memory)
    path = Path(socket_path("passt", "demo", "lan"))
    path.rename(tmp_path / "away")
    passt.cut()
    wait_for_link(vm, plug, LINK_DOWN)
    (tmp_path / "away").rename(path)
    wait_for_link(vm, plug, LINK_UP)
    machine.close()
    vm.close()
    assert [text for text in vm.warnings if "the guest's link is down until it is there again" in text] != []


@pytest.mark.parametrize("stage", ["before a machine", "before it starts", "running", "paused", "at the end"])
def test_passt_dies(tmp_path: Path, passt: NetBackEnd, stage: str) -> None:
    """Frames come again, in this machine and in the next one. One that ends while nobody uses it is worth no warning."""
    vm = PluggedVm(tmp_path, "pci", SECTION)
    passt.queues = 1  # that the driver uses

    def may_die(now: str) -> None:
        if now == stage:
            passt.cut()
            assert any(passt.ended for _ in waiting())

    may_die("before a machine")
    machine = vm.build()
    may_die("before it starts")
    machine.start()
    queue = start_driver(plug_of(machine, "lan"), machine.memory)
    check_frame(vm, machine, queue, passt)
    may_die("running")
    check_frame(vm, machine, queue, passt)
    machine.pause()
    may_die("paused")
    (network,) = (device for device in vm.config.devices if device.name == "lan")
    backend = vm.backends.of(network)
    assert isinstance(backend, ExternalBackend)
    assert any((backend.link.front is None) == (stage == "paused") for _ in waiting()), "it is noticed in a pause, too"
    machine.resume()
    check_frame(vm, machine, queue, passt)
    assert vm.warnings == ([ENDED, AGAIN] if stage == "running" else [])
    may_die("at the end")
    machine.close()
    machine = vm.build()
    machine.start()
    check_frame(vm, machine, start_driver(plug_of(machine, "lan"), machine.memory), passt)
    machine.close()
    vm.close()


def check_frame(vm: PluggedVm, machine: KvmMachine, queue: DriverQueue, passt: NetBackEnd) -> None:
    """The driver gets a frame, and its link is up."""
    queue.add([], [128])
    notify(plug_of(machine, "lan"))
    passt.send(FRAME)
    assert next((data for _ in waiting() for _, _, data in queue.take_used()), b"") == HEADER + FRAME
    wait_for_link(vm, plug_of(machine, "lan"), LINK_UP)
    assert any(passt.taken_up for _ in waiting())


def test_without_passt_the_vm_is_not_begun(tmp_path: Path, passt: NetBackEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = PluggedVm(tmp_path, "pci", SECTION)
    Path(socket_path("passt", "demo", "lan")).unlink()
    with pytest.raises(HostError, match=r"the passt of the network lan cannot be reached at .*: No such file or directory"):
        vm.open_backends()
    monkeypatch.setattr(host_passt, "PASST", "/nowhere")
    with pytest.raises(HostFacilityMissing, match="the network lan needs passt, and there is no /nowhere"):
        vm.open_backends()
    vm.close()


def wait_for_link(vm: PluggedVm, plug: Plugged, status: bytes) -> None:
    """Until the driver would read that status; what the event loop would do is done here."""
    for _ in waiting():
        for event in vm.events.drain():
            if event.call is not None:
                event.call()
        if plug.transport.virtio.read_config(6, 2) == status:
            return
    raise AssertionError(vm.warnings)
