"""A machine's whole state as one tree of plain values, and a machine that goes on from there.

    model     the machine's layout: addresses, ACPI contents, slots
    memory    [gpa, size in bytes] of each region of RAM; the bytes themselves stay where they are
    kvm       the VM's clock, and interrupt controllers that are in the kernel
    vcpus     by index: registers, local APIC, MSRs, …
    board     the devices that every machine has
    slots     where the others are
    devices   by label: device, transport, and what waits for the guest
    rom       a firmware's image, hexadecimal; empty with a kernel

All of it can be written as JSON. Guest memory does not belong to it: whoever goes on has the same pages, or a copy.
"""

from __future__ import annotations

from vmservice.errors import Busy
from vmservice.kvm.state import KvmState, complete_exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.board import Tree
    from vmservice.config.load import Config
    from vmservice.kvm.system import Kvm
    from vmservice.vm.machine import KvmMachine

MODEL = 1


def collect(machine: KvmMachine, kvm: Kvm) -> Tree:
    """The state of a machine that is paused; Busy while the guest has still to take or give back a vCPU.

    The machine itself is as before, and may go on.
    """
    hotplug = machine.board.cpu_hotplug
    vcpus = machine.vcpu_set.running()
    if hotplug is not None and set(hotplug.taken()) != set(vcpus):
        raise Busy("the machine's state cannot be taken while a Resize is under way")
    # Devices are held by the pause, but an exit that is half done may reach one: it is finished before they are looked at.
    for vcpu in vcpus.values():
        complete_exit(vcpu, machine.exit_handler.handle)
    state = KvmState(kvm, machine.kvm_vm)
    with machine.board.lock:
        machine.board.take_coalesced()
        board = machine.board.collect()
    return {
        "model": MODEL,
        "memory": [[region.gpa, region.size_bytes] for region in machine.memory.regions if region.is_ram],
        "kvm": state.get_vm(),
        "vcpus": {str(index): state.get_vcpu(vcpu) for index, vcpu in vcpus.items()},
        "board": board,
        "slots": machine.slots.collect() if machine.slots is not None else {},
        "devices": {device.label: device.collect() for device in machine.devices},
        "rom": machine.rom[:].hex() if machine.rom is not None else "",
    }


def check(tree: Tree, config: Config) -> None:
    """ValueError unless a machine of `config` can go on from `tree`."""
    if tree.get("model") != MODEL:
        raise ValueError(f"this is the state of a machine of model {tree.get('model')!r}; {MODEL} is known here")
    labels = {device.name for device in config.devices}
    if labels != set(tree["devices"]):
        raise ValueError(
            f"the machine has {', '.join(sorted(labels)) or 'no devices'}, and this is the state of one with"
            f" {', '.join(sorted(tree['devices'])) or 'none'}"
        )


def put_back(tree: Tree, machine: KvmMachine, kvm: Kvm) -> list[str]:
    """Give a machine that was built from `tree`, and has not run, the state of its vCPUs and VM; what KVM did not take.

    Every vCPU has its state before the VM's clock, and both before a device may interrupt.
    """
    state = KvmState(kvm, machine.kvm_vm)
    refused = []
    for index, vcpu in machine.vcpu_set.created().items():
        refused += [f"MSR {msr:#x} of vCPU {index}" for msr in state.set_vcpu(vcpu, tree["vcpus"][str(index)])]
    state.set_vm(tree["kvm"])
    for vcpu in machine.vcpu_set.created().values():
        vcpu.tell_paused()
    return refused
