"""The machine that a VM has now: built and started, fed with what is typed, given back; and what outlives it."""

from __future__ import annotations

import time

from vmservice.errors import HostError, MachineLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.config.load import Device
    from vmservice.vm.machine_protocol import Machine

# Guest memory is given back to the host, and taken and filled anew, at this speed at least.
_BUILD_BYTES_PER_SEC = 256 << 20


class MachineHolder:
    """One machine at a time, or none, each made by `build` from the number of its vCPUs. `memory_bytes` is how large they are.

    `on_input_room` is told a console that may take typed bytes again after it refused some.
    """

    def __init__(self, build: Callable[[int], Machine], memory_bytes: int, on_input_room: Callable[[str], None]) -> None:
        self.machine: Machine | None = None
        self.is_lost = False  # the machine cannot be stopped
        self.working_until = 0.0  # on the monotonic clock, when a machine that is being built or closed is due; else 0
        self._on_input_room = on_input_room
        self._build = build
        self._memory_bytes = memory_bytes
        self._reconfigured: dict[str, Device] = {}  # by name: in place of what the configuration gave the machine
        self._refused_input: set[str] = set()  # consoles that have not taken all that was typed

    @property
    def present(self) -> Machine:
        assert self.machine is not None, "a VM that is running or paused has a machine"
        return self.machine

    def start(self, vcpus: int) -> None:
        """A fresh machine runs; there is none before."""
        self._expect_work()
        try:
            machine = self._build(vcpus)
            try:
                for device in self._reconfigured.values():
                    machine.reconfigure(device)
                machine.start()
            except BaseException:
                machine.close()
                raise
            self.machine = machine
        finally:
            self.working_until = 0.0

    def close(self) -> None:
        """Give it back to the host. HostError, and the guest goes on, where it cannot be stopped.

        What is lost already is not tried again: the end of the process gives it back.
        """
        if self.machine is None or self.is_lost:
            return
        self._expect_work()
        try:
            self.machine.close()
            self.machine = None
        finally:
            self.working_until = 0.0

    def close_for_good(self) -> None:
        """As `close`, for a guest that must not go on: MachineLost where it cannot be stopped."""
        try:
            self.close()
        except HostError as error:
            self.is_lost = True
            raise MachineLost(f"the machine cannot be stopped, so the process ends: {error}") from error

    def reconfigure(self, device: Device) -> None:
        """This machine, and each after it, has the device of that name as this section of the configuration says."""
        self._reconfigured[device.name] = device
        if self.machine is not None:
            self.machine.reconfigure(device)

    def type(self, data: bytes, console: str) -> int:
        """How many of the typed bytes were taken: none unless the guest runs."""
        taken = self.machine.console_input(data, console) if self.machine is not None else 0
        if taken < len(data):
            self._refused_input.add(console)
        else:
            self._refused_input.discard(console)
        return taken

    def forget_input(self, console: str) -> None:
        """Whoever typed at `console` is gone, and what the guest has not taken with them."""
        self._refused_input.discard(console)
        if self.machine is not None:
            self.machine.forget_input(console)

    def offer_input(self) -> None:
        """The guest runs again, or anew: there may be room for what was refused."""
        refused, self._refused_input = self._refused_input, set()
        for console in refused:
            self._on_input_room(console)

    def _expect_work(self) -> None:
        """The main thread is about to do what takes as long as the guest's memory is large."""
        self.working_until = time.monotonic() + self._memory_bytes / _BUILD_BYTES_PER_SEC
