"""`[[pmem]]`: virtio-pmem, a file mapped into the guest."""

from __future__ import annotations

from vmservice.board.rings import ThreadRings
from vmservice.board.slot import Plugged
from vmservice.devices.limited_warnings import LimitedWarnings
from vmservice.devices.virtio.pmem import Pmem, PmemState
from vmservice.errors import HostError
from vmservice.host.file_watch import FileWatch
from vmservice.host.pmem_file import PmemFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.pmem import PmemDevice
    from vmservice.plug.backend import Details, Host


class PmemPlug(Plugged):
    """`file` outlives it: the next machine maps it anew, and has nothing of what a guest wrote to one that is read-only."""

    def __init__(self, file: PmemFile, slot: Slot) -> None:
        self._file = file
        self._slot = slot
        self._warn_of_error = LimitedWarnings(slot.warn)
        self._flushes = self._errors = 0
        self._watch: FileWatch | None = None
        self.device = Pmem(_show(file, slot), self._flush)
        self._rings = ThreadRings(slot.label, 1, self.device.serve, slot.bug)
        try:
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    def start(self) -> None:
        super().start()
        if self._file.is_device:
            return
        try:
            self._watch = FileWatch(self._file.fd, self._look)
        except HostError as error:
            self._slot.warn(f"pmem {self.label}: {error}; whoever cuts {self._file.path} short may end the VM by SIGBUS")
        self._look()

    def stats(self) -> dict[str, float]:
        return {"flushes": self._flushes, "errors": self._errors}

    def explain(self) -> str:
        if not self._file.is_cut_short():
            return ""
        return f"; somebody has cut short {self._file.path}, which is its pmem {self.label}"

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        super().close()
        self._rings.close()

    def _look(self) -> None:
        if self._file.is_cut_short():
            self._slot.fault("the guest's memory has lost pages")

    def _flush(self) -> bool:
        """In the virtqueue's thread. The guest is told of each failure, the journal of one a minute."""
        self._flushes += 1
        try:
            self._file.flush()
        except OSError as error:
            self._errors += 1
            what = f"pmem {self.label}: {self._file.path} cannot be flushed"
            self._warn_of_error(f"{what}, which the guest is told: {error.strerror}")
            return False
        return True


def _show(file: PmemFile, slot: Slot) -> PmemState:
    """The file, in guest memory: where it was, if the guest knows it already."""
    state = slot.state_of(PmemState)
    mapping = file.map()
    try:
        if state is not None and state.size != len(mapping):
            raise HostError(f"{file.what}: {file.path} has {len(mapping)} bytes, and had {state.size} when the state was taken")
        start = slot.add_memory(mapping, None if state is None else state.start, fd=file.shared_fd)
    except BaseException:
        mapping.close()
        raise
    return state or PmemState(start, len(mapping))


def open(section: PmemDevice, host: Host) -> PmemFile:
    return PmemFile(section.path, f"pmem {section.name}", writable=not section.readonly)


def memory_bytes(backend: PmemFile) -> int:
    """ConfigError or HostError where there is no size that could be."""
    return backend.look_again()


def build(section: PmemDevice, backend: PmemFile, slot: Slot) -> Plugged:
    return PmemPlug(backend, slot)


def details(section: PmemDevice, backend: PmemFile) -> dict[str, Details]:
    return {section.name: {"path": section.path, "size": backend.size_bytes, "readonly": section.readonly}}
