"""All that a device knows is in its state: what it changes elsewhere, after its constructor, is named here with the reason.

A device that is built from a state goes on where another one stopped, so an attribute that is neither in `.state` nor follows
from it would be forgotten.
"""

from __future__ import annotations

import ast
from pathlib import Path

DEVICES = Path(__file__).parents[2] / "vmservice" / "devices"

ACTIVE = "while the device is active: `activate` sets it, from the transport's state"
HOST = "the host's own: nothing that the guest can see depends on it"
TOLD = "what was last told to the outside, which `start` tells anew"
CALLED = "another object, with a state of its own or none; the method only has the name of a container's"
MEMORY = "the guest's memory"
AHEAD = "taken ahead by a ring owner, which puts it back when it stops"
BUILDER = "set by the constructors and by whoever plugs the device in, the same for each that is built"

# "module.Class.attribute": why it is in no state.
ELSEWHERE = {
    "bus.Bus._claims": BUILDER,
    "bus.Bus._long": BUILDER,
    "bus.Bus.by_address": BUILDER,
    "irq.IrqLine.level": "what its device and the IOAPIC have in their states",
    "limited_warnings.LimitedWarnings._held_back": HOST,
    "limited_warnings.LimitedWarnings._next_at": HOST,
    "pci.bar_map.BarMap._blocked": "follows from where BARs lie and which of them answer; for the warning only",
    "pci.bar_map.BarMap._mapped": "`PciBusState.answering`",
    "pci.bar_map.BarMap._mmio": CALLED,
    "pci.bar_map.BarMap._reserved": "where guest memory is, whose regions are told to the bus anew",
    "pci.bus.PciBus._bar_map": CALLED,
    "pci.bus.PciBus._started": "`start` is the machine's",
    "pci.bus.PciBus.functions": BUILDER,
    "pci.config_space.ConfigSpace._clearable": BUILDER,
    "pci.config_space.ConfigSpace._free": BUILDER,
    "pci.config_space.ConfigSpace._last_capability": BUILDER,
    "pci.config_space.ConfigSpace._writable": BUILDER,
    "pci.function.PciFunction.bars": BUILDER,
    "pci.msix.Msix._control": "the configuration space has it; `config_written` takes it over",
    "pci.msix.Msix._may_write": "the configuration space has it: the function's command register",
    "pci.msix.Msix._told": TOLD,
    "virtio.balloon.Balloon._has_statistics": ACTIVE,
    "virtio.balloon.Balloon._interrupt": ACTIVE,
    "virtio.balloon.Balloon._queues": ACTIVE,
    "virtio.balloon.Balloon._reporting": ACTIVE,
    "virtio.block.Block._interrupt": ACTIVE,
    "virtio.block.Block.is_durable": ACTIVE,
    "virtio.console.Console._interrupt": ACTIVE,
    "virtio.console.Console._multiport": ACTIVE,
    "virtio.console.Console._queues": ACTIVE,
    "virtio.external.External._interrupt": ACTIVE,
    "virtio.mmio_transport._LineInterrupt.status": "`MmioState.interrupt_status`",
    "virtio.net.Net._features": ACTIVE,
    "virtio.net.Net._interrupt": ACTIVE,
    "virtio.queue.Queue._avail_event": MEMORY,
    "virtio.queue.Queue._used": MEMORY,
    "virtio.queue.Queue._used_elements": MEMORY,
    "virtio.queue.Queue._views": ACTIVE,
    "virtio.queue.Queue.backlog": "`VirtioTransport.start` looks into every virtqueue",
    "virtio.queue.Room.counts": AHEAD,
    "virtio.queue.Room.heads": AHEAD,
    "virtio.queue.Room.size_bytes": AHEAD,
    "virtio.queue.Room.sizes": AHEAD,
    "virtio.queue.Room.views": AHEAD,
    "virtio.rng.Rng._allowance_at": "the host's clock; the time in between is not counted",
    "virtio.rng.Rng._interrupt": ACTIVE,
    "virtio.rng.Rng._queue": ACTIVE,
    "virtio.rng.Rng._timer": "`VirtioTransport.start` looks into the virtqueue, and what is held back sets a timer",
    "virtio.transport.VirtioTransport._has_dma": "the configuration space has it: the function's command register",
    "virtio.transport.VirtioTransport._is_resetting": "a pause finishes the reset, or fails",
    "virtio.served.ServedQueues.is_served": "follows from `start`, bus mastering and the driver's status",
    "virtio.served.ServedQueues._next_turn": HOST,
    "virtio.served.ServedQueues._posted": HOST,
    "virtio.served.ServedQueues.queues": ACTIVE,
    "virtio.served.ServedQueues._signals": "empty while nothing is served: what stops ring owners tells of them",
    "virtio.transport.VirtioTransport._started": "`start` is the machine's",
    "watchdog.Watchdog._counts": "`start` is the machine's",
    "watchdog.Watchdog._due_sec": "the host's clock",
    "watchdog.Watchdog._is_last": "the last second begins anew with `start`",
    "watchdog.Watchdog._seen_sec": "the host's clock; `stop` puts what is left into the state",
    "watchdog.Watchdog._timer": "`start` sets it",
}

# Methods that change what they are called on.
CHANGING = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "sort", "update"}


def own_attribute(node: ast.expr) -> str | None:
    """`X` of `self.X`, `self.X[…]`, and so on; None for anything that is not an attribute of self, and for what it holds."""
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def targets(node: ast.AST) -> list[ast.expr]:
    """What a statement assigns to, deletes or, by a method, changes."""
    if isinstance(node, ast.Assign | ast.Delete):
        found = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
        found = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        found = [node.func.value]
    else:
        return []
    flat = []
    while found:
        target = found.pop()
        if isinstance(target, ast.Tuple | ast.List):
            found += target.elts
        else:
            flat.append(target.value if isinstance(target, ast.Starred) else target)
    return flat


def changed(module: str, tree: ast.Module) -> set[str]:
    """ "module.Class.attribute" for all that methods other than __init__ change, state objects' and exempt names left out."""
    found = set()
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for method in cls.body:
            if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                names = (own_attribute(target) for node in ast.walk(method) for target in targets(node))
                found |= {f"{module}.{cls.name}.{name}" for name in names if name is not None and name != "state"}
    return found


def all_changed() -> set[str]:
    found = set()
    for source in DEVICES.rglob("*.py"):
        module = ".".join(source.relative_to(DEVICES).with_suffix("").parts)
        found |= changed(module, ast.parse(source.read_text()))
    return found


def test_all_that_a_device_changes_is_in_its_state() -> None:
    assert sorted(all_changed() - ELSEWHERE.keys()) == []


def test_every_exception_is_one() -> None:
    assert sorted(ELSEWHERE.keys() - all_changed()) == []


def test_the_test_sees_each_way_of_changing() -> None:
    tree = ast.parse(
        """
class Device:
    def __init__(self):
        self.built = 1
    def work(self):
        self.state.value = 1
        self.state = None
        self.one = 1
        self.two, other = 1, 2
        self.three[4][5] = 6
        del self.four[1]
        self.five.append(1)
        self.six += 1
        self.seven: int = 1
        self.eight.read(1)
        [self.nine, *self.ten] = [1, 2]
"""
    )
    names = ["one", "two", "three", "four", "five", "six", "seven", "nine", "ten"]
    assert changed("m", tree) == {f"m.Device.{name}" for name in names}
