"""The vCPUs of a machine and their threads: started, stopped and released together, added and removed one by one."""

from __future__ import annotations

import time

from vmservice.errors import HostError, seconds
from vmservice.vm.vcpu import VcpuThread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.vm.vcpu import ExitHandler, FaultHandler, Look

# How long the vCPUs have to leave the guest. They take microseconds; only a host in deep trouble takes longer.
STOP_TIMEOUT_SEC = 10.0


class Vcpus:
    """`create` makes the vCPU of an index in KVM; those of `indexes`, 0 among them, exist from the beginning. None runs.

    Every method but `silent` and `look` is for the main thread.
    """

    def __init__(self, create: Callable[[int], KvmVcpu], indexes: Iterable[int]) -> None:
        self._create = create
        # KVM has no way to give a vCPU back while the VM lives: one that was removed stays here, without a thread.
        self._created: dict[int, KvmVcpu] = {}
        self._threads: dict[int, VcpuThread] = {}
        self._handle_exit: ExitHandler
        self._on_fault: FaultHandler
        try:
            for index in indexes:
                self._created[index] = create(index)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Those that have a thread, or will have one at the start."""
        return len(self._threads) or len(self._created)

    @property
    def first(self) -> KvmVcpu:
        return self._created[0]

    @property
    def is_closed(self) -> bool:
        return not self._created

    def start(self, handle_exit: ExitHandler, on_fault: FaultHandler) -> None:
        """All begin to run; `handle_exit` and `on_fault` are called in their threads. HostError, with none left running."""
        self._handle_exit = handle_exit
        self._on_fault = on_fault
        try:
            for index in self._created:
                self._start_thread(index)
        except BaseException:
            self.remove(list(self._threads))
            raise

    def add(self, index: int) -> None:
        """A vCPU that waits for the guest to start it.

        One that was here before is as the guest left it: halted for good, until the guest sends INIT, which resets it
        (Intel SDM vol. 3, 9.4).
        """
        if index not in self._created:
            self._created[index] = self._create(index)
        self._start_thread(index)

    def running(self) -> dict[int, KvmVcpu]:
        """Those that have a thread, by index."""
        return {index: self._created[index] for index in self._threads}

    def created(self) -> dict[int, KvmVcpu]:
        """Those that KVM has, by index."""
        return dict(self._created)

    def has(self, index: int) -> bool:
        return index in self._threads

    def remove(self, indexes: list[int]) -> None:
        """Those stop for good. HostError, with all of them going on, when one does not stop."""
        threads = [self._threads[index] for index in indexes]
        self._stop(threads)
        for index, thread in zip(indexes, threads, strict=True):
            thread.finish()
            del self._threads[index]

    def stop(self) -> None:
        """Returns when every vCPU holds. HostError, with all of them going on, when one does not."""
        self._stop(list(self._threads.values()))

    def release(self) -> None:
        """All go on from where they hold."""
        for thread in self._threads.values():
            thread.vcpu.tell_paused()
        for thread in self._threads.values():
            thread.release()

    def silent(self) -> list[str]:
        """Those whose threads have given no sign of life since the last call, by name; asks for the next."""
        threads = list(self._threads.values())
        names = [f"vCPU {thread.vcpu.index}" for thread in threads if not thread.answered]
        for thread in threads:
            thread.ask()
        return names

    def look(self, look: Look, timeout_sec: float) -> dict[int, list[str] | None]:
        """What `look` makes of each vCPU, None for one that does not come out of the guest. Waits that long for all of them."""
        sights = [(thread.vcpu.index, thread.look(look)) for thread in list(self._threads.values())]
        deadline = time.monotonic() + timeout_sec
        return {index: sight.wait(max(deadline - time.monotonic(), 0)) for index, sight in sights}

    def whereabouts(self, index: int) -> str:
        """Where in this program the thread of that vCPU is: see `VcpuThread.whereabouts`."""
        thread = self._threads.get(index)
        return thread.whereabouts() if thread is not None else "it has no thread any more"

    def stats(self) -> dict[str, int]:
        """VM exits of all of them since they were made, by kind; none where KVM does not tell."""
        from vmservice.kvm.stats import total_exits

        return total_exits([vcpu.stats_fd for vcpu in self._created.values() if vcpu.stats_fd >= 0])

    def close(self) -> None:
        """Stop and give everything back; HostError, with the vCPUs going on, when one does not stop."""
        self.remove(list(self._threads))
        while self._created:
            self._created.popitem()[1].close()

    def _start_thread(self, index: int) -> None:
        # Two threads in KVM_RUN of one vCPU would each lose what the other does.
        assert index not in self._threads, f"vCPU {index} has a thread already"
        thread = VcpuThread(self._created[index], self._handle_exit, self._on_fault)
        try:
            thread.start()
        except RuntimeError as error:
            raise HostError(f"cannot start a thread for vCPU {index}: {error}") from error
        self._threads[index] = thread

    @staticmethod
    def _stop(threads: list[VcpuThread]) -> None:
        """Returns when every thread holds: all are asked first, so they stop side by side."""
        for thread in threads:
            thread.request_stop()
        deadline = time.monotonic() + STOP_TIMEOUT_SEC
        for thread in threads:
            if not thread.wait_stopped(max(deadline - time.monotonic(), 0)):
                for asked in threads:
                    asked.release()
                raise HostError(f"vCPU {thread.vcpu.index} did not stop within {seconds(STOP_TIMEOUT_SEC)}")
