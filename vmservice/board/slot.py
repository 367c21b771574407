"""A place where a device is plugged in, and the device in it: what a plug is given, and what the machine gets from it."""

from __future__ import annotations

import _thread

from vmservice.errors import HostError
from vmservice.memory.guest_memory import Region

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from typing import Any, Protocol, TypeVar

    from vmservice.board.input import ConsoleInput
    from vmservice.board.resources import Resources
    from vmservice.board.timers import Timer, Timers
    from vmservice.devices.state import DeviceState
    from vmservice.devices.virtio.device import VirtioDevice
    from vmservice.devices.virtio.rings import RingOwner
    from vmservice.devices.virtio.transport import VirtioTransport
    from vmservice.memory.guest_memory import GuestMemory

    S = TypeVar("S", bound=DeviceState)
    Tree = dict[str, Any]

    class Transport(Protocol):
        """A PCI function or a window of MMIO registers with a virtio device behind it."""

        @property
        def virtio(self) -> VirtioTransport: ...

        @property
        def state(self) -> DeviceState: ...

        def start(self) -> None: ...

        def close(self) -> None: ...


class Services:
    """What of the machine the devices in all slots share.

    `post(callback)` runs `callback` soon in the event loop's thread, with no lock held, unless the machine is gone by then.
    `on_input_room` is told, from any thread, the console that has room for typed bytes again. `fault(reason)` ends the guest:
    neither it nor its machine can go on.
    """

    __slots__ = ("fault", "memory", "on_input_room", "post", "resources", "timers", "warn")

    def __init__(
        self,
        memory: GuestMemory,
        timers: Timers,
        resources: Resources,
        *,
        post: Callable[[Callable[[], None]], None],
        on_input_room: Callable[[str], None],
        warn: Callable[[str], None],
        fault: Callable[[str], None],
    ) -> None:
        self.fault = fault
        self.memory = memory
        self.resources = resources
        self.timers = timers
        self.post = post
        self.on_input_room = on_input_room
        self.warn = warn


class Slot:
    """For the device called `label`. `lock` is held during each access to the device, by the guest or by the host.

    `place` makes the device's transport: once, and with this slot's lock.
    """

    __slots__ = ("_place", "_services", "label", "lock", "memory", "tree")

    def __init__(
        self,
        label: str,
        services: Services,
        place: Callable[[Slot, VirtioDevice, RingOwner | None], Transport],
        tree: Tree | None = None,
    ) -> None:
        """`tree` is what `collect` of the device in another machine has said: this one goes on from there."""
        self.tree: Tree = tree or {}
        self.label = label
        self.lock = _thread.allocate_lock()
        self.memory = services.memory
        self._services = services
        self._place = place

    def place(self, device: VirtioDevice, rings: RingOwner | None) -> Transport:
        return self._place(self, device, rings)

    def state_of(self, kind: type[S]) -> S | None:
        """The state that the device is to go on from; None for one that begins."""
        return kind.from_values(self.tree["device"]) if "device" in self.tree else None

    def typed(self, label: str) -> bytes:
        """What waits for the guest at the console of that label."""
        return bytes.fromhex(self.tree.get("typed", {}).get(label, ""))

    def call_later(self, delay_sec: float, callback: Callable[[], None]) -> Timer:
        """Have `callback` called in that time, in the event loop's thread and with the lock held."""
        return self._services.timers.call_later(delay_sec, lambda: self._with_lock(callback))

    def post(self, callback: Callable[[], None]) -> None:
        """Have `callback` called soon, in the event loop's thread and with the lock held. From any thread."""
        self._services.post(lambda: self._with_lock(callback))

    def on_input_room(self, label: str) -> None:
        self._services.on_input_room(label)

    def warn(self, text: str) -> None:
        """A sentence for the journal. From any thread."""
        self._services.warn(text)

    def bug(self, error: Exception) -> None:
        """A thread of the device's has met a mistake of ours: the journal has all of it. From any thread."""
        import traceback

        self.warn(f"internal error: the device {self.label}: {''.join(traceback.format_exception(error))}")

    def fault(self, reason: str) -> None:
        """End the guest, once the machine has been started. From any thread."""
        self._services.fault(reason)

    def add_memory(self, mapping: mmap.mmap, at: int | None = None, *, fd: int = -1) -> int:
        """Show all of `mapping` to the guest as memory of the device's, which no memory map tells it of; its gpa.

        While the device is built. `at` is where a machine had it that this one goes on from. `fd` is the file that `mapping`
        shares with whoever maps that, too. The mapping is guest memory's to close from then on. ConfigError or HostError where
        there is no room.
        """
        services = self._services
        gpa = services.resources.place_memory(len(mapping), self.label, at)
        # None of it is ever given back: a hole in the file would be what is left.
        region = Region(gpa, mapping, None, fd=fd, is_ram=False)
        try:
            services.memory.add(region)
        except BaseException:
            region.view.release()  # the mapping stays the caller's
            raise
        return gpa

    def _with_lock(self, callback: Callable[[], None]) -> None:
        with self.lock:
            callback()


class Plugged:
    """A device in its slot. Kinds that can do more than exchange buffers with the guest are subclasses.

    `rings` serves the device's virtqueues, the device itself without; whoever made it closes it, when the device is closed.
    `inputs` are the consoles of the device that can be typed at, by label. Every method is for the main thread, with no lock
    held.
    """

    def __init__(self, slot: Slot, device: VirtioDevice, rings: RingOwner | None = None) -> None:
        self.label = slot.label
        self.lock = slot.lock
        self.inputs: dict[str, ConsoleInput] = {}
        self.transport = slot.place(device, rings)

    def start(self) -> None:
        """The machine is whole: what the driver had asked for before its state was taken goes on."""
        self.transport.start()

    def pause(self) -> None:
        """The device does nothing until `resume`: neither for the guest nor for the host.

        HostError, with the device as it was, when what is under way is not done in time.
        """
        if not self.transport.virtio.stop():
            raise HostError(f"requests of the device {self.label} wait for the host, and could not be waited for any longer")

    def resume(self) -> None:
        self.transport.virtio.start()

    def explain(self) -> str:
        """What the host knows of this device that may be why the guest has failed; empty for nothing. From any thread."""
        return ""

    def abandon(self) -> None:
        """The machine is at its end: what the driver has asked for need not be waited for any longer than it is worth."""

    def collect(self) -> Tree:
        """The whole state of device and transport as plain values, and what waits beside them. The machine is paused."""
        with self.lock:
            return {
                "device": self.transport.virtio.device.state.values(),
                "transport": self.transport.state.values(),
                "typed": {label: console.waiting.hex() for label, console in self.inputs.items()},
            }

    def stats(self) -> dict[str, float]:
        """What has been counted since the guest's start, by name: "read_bytes". Waits for the lock at most."""
        return {}

    def reconfigure(self, section: Any) -> None:
        """The section of the configuration has other values than before, of keys that may change while the VM runs."""

    def close(self) -> None:
        """Let go of guest memory, and of the host."""
        self.transport.close()
