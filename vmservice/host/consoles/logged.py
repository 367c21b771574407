"""A console that somebody may type at, with what the guest prints kept in the journal or a file too."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.host.consoles.base import Console


class LoggedConsole:
    """`front`, and `record`, at which nobody types. What is written goes to both, and each has its own limits: both only queue
    bytes, so that neither waits for the other, or the guest for either. All else is the front's.

    `path` is that of the record's file, if it is one.
    """

    def __init__(self, front: Console, record: Console, path: str | None = None) -> None:
        self.label = front.label
        self.keeps_input = front.keeps_input
        self._front = front
        self._record = record
        self._path = path

    def write(self, data: bytes) -> None:
        self._record.write(data)
        self._front.write(data)

    def reopen(self, done: Callable[[], None]) -> None:
        self._record.reopen(done)

    def fds(self) -> dict[str, int]:
        return {**self._front.fds(), **{f"log.{name}": fd for name, fd in self._record.fds().items()}}

    def details(self) -> dict[str, str | int | bool]:
        details = {**self._front.details(), "log": self._record.details()["mode"]}
        if self._path is not None:
            details["log_path"] = self._path
        return details

    def close(self) -> None:
        try:
            self._front.close()
        finally:
            self._record.close()

    # The front's

    @property
    def input_fd(self) -> int:
        return self._front.input_fd

    @property
    def is_attached(self) -> bool:
        return self._front.is_attached

    @property
    def visit(self) -> int:
        return self._front.visit

    def read(self, size_bytes: int) -> bytes:
        return self._front.read(size_bytes)

    def took(self, size_bytes: int, visit: int) -> None:
        self._front.took(size_bytes, visit)

    def has_room(self) -> bool:
        return self._front.has_room()

    def size(self) -> tuple[int, int]:
        return self._front.size()

    def follow_size(self) -> None:
        self._front.follow_size()

    def look_at_size(self) -> None:
        self._front.look_at_size()

    @property
    def on_attached(self) -> Callable[[], None] | None:
        return self._front.on_attached

    @on_attached.setter
    def on_attached(self, callback: Callable[[], None] | None) -> None:
        self._front.on_attached = callback

    @property
    def on_room(self) -> Callable[[], None] | None:
        return self._front.on_room

    @on_room.setter
    def on_room(self, callback: Callable[[], None] | None) -> None:
        self._front.on_room = callback

    @property
    def on_resized(self) -> Callable[[], None] | None:
        return self._front.on_resized

    @on_resized.setter
    def on_resized(self, callback: Callable[[], None] | None) -> None:
        self._front.on_resized = callback

    @property
    def on_visit(self) -> Callable[[], None] | None:
        return self._front.on_visit

    @on_visit.setter
    def on_visit(self, callback: Callable[[], None] | None) -> None:
        self._front.on_visit = callback
