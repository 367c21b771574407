"""A machine that notes what is asked of it, and refuses what it is told to refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmservice.errors import HostError

if TYPE_CHECKING:
    from vmservice.config.load import Device


class RecordingMachine:
    """Obeys as `machine_protocol.Machine` says; `refuse` names the methods that raise; the guest of a `slow` one does
    not answer `set_vcpus` at once."""

    def __init__(self, vcpus: int = 1, refuse: tuple[str, ...] = (), slow: bool = False) -> None:
        self.vcpus = vcpus
        self.slow = slow
        self.calls: list[str] = []
        self.refuse = set(refuse)
        self.not_answering: list[str] = []
        self.input_room = 1 << 20
        self.counters: dict[str, float] = {}

    def start(self) -> None:
        self._note("start")

    def pause(self) -> None:
        self._note("pause")

    def resume(self) -> None:
        self._note("resume")

    def press_power_button(self) -> None:
        self._note("press_power_button")

    def set_vcpus(self, count: int) -> None:
        self._note("set_vcpus")
        self.vcpus = self.vcpus if self.slow else count

    def settle_vcpus(self) -> None:
        self._note("settle_vcpus")

    def cancel_set_vcpus(self) -> None:
        self._note("cancel_set_vcpus")

    def console_input(self, data: bytes, console: str = "serial") -> int:
        self._note("console_input")
        return min(len(data), self.input_room)

    def forget_input(self, console: str) -> None:
        self._note(f"forget_input {console}")

    def reconfigure(self, device: Device) -> None:
        self._note(f"reconfigure {device.name}")

    def stats(self) -> dict[str, float]:
        return dict(self.counters)

    def silent(self, patience_sec: float) -> list[str]:
        return list(self.not_answering)

    def describe(self) -> list[str]:
        return ["vCPU 0: RIP 0xfff0"]

    def close(self) -> None:
        self._note("close")

    @property
    def closed(self) -> bool:
        return "close" in self.calls and "close" not in self.refuse

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.refuse:
            raise HostError(f"cannot {call}: No space left on device (errno 28)", 28)
