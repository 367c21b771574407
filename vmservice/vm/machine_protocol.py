"""What a VM runs on, as the VM sees it: real in `machine.py`, simulated in `sim.py`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from vmservice.config.load import Device

    class Machine(Protocol):
        """What a VM runs on. Built stopped; `close` works from every condition and more than once.

        A call that fails raises a VmmError and leaves everything as it was.
        """

        @property
        def vcpus(self) -> int:
            """vCPUs present now."""

        def start(self) -> None:
            """Every boot vCPU begins to run."""

        def pause(self) -> None:
            """Returns when every vCPU and every device has stopped."""

        def resume(self) -> None: ...

        def press_power_button(self) -> None: ...

        def set_vcpus(self, count: int) -> None:
            """Ask the guest to take or give back vCPUs until there are `count`; NotSupported where that cannot be done.

            The guest answers in its own time, with an event EventKind.VCPUS each time that `vcpus` has changed. What it was
            asked before and has not answered yet, it may still do.
            """

        def settle_vcpus(self) -> None:
            """In answer to that event: end what belonged to vCPUs that were given back."""

        def cancel_set_vcpus(self) -> None:
            """Take back what the guest has not noticed; what it has noticed it may still do, and VCPUS then tells."""

        def reconfigure(self, device: Device) -> None:
            """The device of that name is to be as `device` says, where it has one of that name."""

        def console_input(self, data: bytes, console: str = "serial") -> int:
            """Give the guest what a person typed at its serial port or virtio-console (hvc); how many bytes it took.

            After it took less than all, it tells once that it takes more: see HostServices.on_input_room.
            """

        def forget_input(self, console: str) -> None:
            """Whoever typed at `console` is gone, and what the guest has not taken with them."""

        def stats(self) -> dict[str, float]:
            """Counters since the guest's start: "vcpu.exits", "disk.NAME.read_bytes" and so on. Waits for nothing."""

        def silent(self, patience_sec: float) -> list[str]:
            """What has given no sign of life since the last call, by name; asks for the next. Waits for `patience_sec` at most.

            For one thread, which need not be the main one.
            """

        def describe(self) -> list[str]:
            """Where the guest is, for a person: a line or more for each vCPU, which leave the guest for a moment.

            For any thread: it may be the main one that hangs. Waits for two seconds at most.
            """

        def close(self) -> None:
            """Stop at once and give everything back to the host. HostError, and the guest goes on, if a vCPU does not stop."""
