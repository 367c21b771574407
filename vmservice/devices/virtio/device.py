"""What a virtio device and its transport know of each other."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmservice.devices.state import DeviceState
    from vmservice.devices.virtio.queue import Queue
    from vmservice.errors import GuestError

    class Interrupt(Protocol):
        """How the driver is told."""

        def interrupt_queue(self, index: int) -> None:
            """Virtqueue `index` has used buffers."""

        def interrupt_config(self) -> None:
            """The configuration or the device status has changed."""

    class BusInterrupt(Interrupt, Protocol):
        """The transport's bus, which makes it a line or a message."""

        def queue_eventfd(self, index: int) -> int | None:
            """An eventfd, a write of 1 to which is `interrupt_queue` from any thread or process; None where there is none."""

    class DriverPort(Interrupt, Protocol):
        """What an active device has of its driver."""

        def needs_reset(self, error: GuestError) -> None:
            """The driver broke the rules, which came to light in a call from the host: nothing goes on until a reset.

            The device is `reset` by this. In `notify` and `activate` it need not be called: there the error is raised.
            """

    class VirtioDevice(Protocol):
        """The device-specific part. Every call comes with the transport's lock held.

        No call may take longer than some milliseconds, whatever the driver says: see `Queue.take`.
        """

        @property
        def device_type(self) -> int: ...

        @property
        def state(self) -> DeviceState:
            """All of it but what the transport has."""

        @property
        def features(self) -> int:
            """The device's own bits; VERSION_1, INDIRECT_DESC and EVENT_IDX are the transport's."""

        @property
        def queue_max_sizes(self) -> tuple[int, ...]:
            """A power of two for each virtqueue, at most 32768."""

        def read_config(self, offset: int, size: int) -> bytes:
            """`size` bytes of the configuration space, zeros behind its end. Has no side effect and never raises."""

        def write_config(self, offset: int, data: bytes) -> None:
            """Never raises; what is read-only stays as it is."""

        def activate(self, queues: list[Queue], interrupt: DriverPort, features: int) -> None:
            """The driver is ready: all virtqueues by index, those that it does not use with `state.ready` False."""

        def reset(self) -> None:
            """Forget the driver and its virtqueues; also called when nothing was active."""

        def notify(self, index: int) -> None:
            """The driver has made buffers available in a ready virtqueue. A GuestError says that it broke the rules."""


def cut_config(config: bytes, offset: int, size: int) -> bytes:
    """`size` bytes of a configuration space from `offset`, zeros behind its end."""
    return config[offset : offset + size].ljust(size, b"\0")
