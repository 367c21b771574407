"""What every end of a guest's console, or port, on the host's side has in common.

Every kind has `write`, for the vCPU threads: it neither waits nor raises, and what it cannot pass on at once is moved by the
process's mover (mover.py); `input_fd`, readable when a person has typed, -1 where nobody can, and `read`; `size`; and `close`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Console(Protocol):
        label: str
        """What messages, the journal and `vmservice console` call it."""
        on_attached: Callable[[], None] | None
        """Told, in whichever thread notices, when somebody has come or gone."""
        on_room: Callable[[], None] | None
        """Told likewise when `has_room` says yes again."""
        on_resized: Callable[[], None] | None
        """Told likewise when `size` answers something else than before."""

        on_visit: Callable[[], None] | None
        """Told likewise when `visit` may answer another number."""

        @property
        def input_fd(self) -> int:
            """To be waited for, without closing it, for what a person types; -1 where there is nobody."""

        @property
        def is_attached(self) -> bool:
            """Whether somebody, or something, is at this end now."""

        def read(self, size_bytes: int) -> bytes:
            """What was typed, when `input_fd` is readable; nothing at the end, BlockingIOError when there is nothing yet."""

        keeps_input: bool
        """Whether `read` only looks, and what it answers is gone when the guest `took` it."""

        def took(self, size_bytes: int, visit: int) -> None:
            """The guest has so much of what `read` answered when `visit` was that; with `keeps_input` only."""

        def has_room(self) -> bool:
            """Whether all of a `write` is kept now, up to a limit; for those that can wait."""

        def write(self, data: bytes) -> None:
            """What the guest printed; from any thread."""

        def follow_size(self) -> None:
            """`on_resized` is of interest from now on."""

        def look_at_size(self) -> None:
            """Our own terminal may have another size now (SIGWINCH)."""

        @property
        def visit(self) -> int:
            """Another number for each client: what one of before has typed, and the guest not taken, is gone with it."""

        def size(self) -> tuple[int, int]:
            """Columns and rows of the terminal now; 0 and 0 where there is none."""

        def reopen(self, done: Callable[[], None]) -> None:
            """Its file, if it has one, may have another name now: open the one that has its name, or make it. `done` is called
            when that is so or has failed, in whichever thread does it. It is never called where the file system hangs."""

        def fds(self) -> dict[str, int]:
            """What it has open and would go on with elsewhere, by name."""

        def details(self) -> dict[str, str | int | bool]:
            """For a person: its mode as the configuration calls it, the `path` at which it is found, if any, and its `log`."""

        def close(self) -> None: ...

    class Log(Protocol):
        def info(self, text: str) -> None: ...
        def warning(self, text: str) -> None: ...


CHUNK_BYTES = 4096
WAITING_LIMIT_BYTES = 64 * 1024
# What may wait for the mover where each line counts; what a guest prints faster is lost, and said.
PENDING_LIMIT_BYTES = 1 << 20
# How long a line, such as a prompt, is waited for to end.
PARTIAL_LINE_SEC = 1.0


def tell(callback: Callable[[], None] | None) -> None:
    """Call what a console's `on_…` was a moment ago: another thread may have set it to None since."""
    if callback is not None:
        callback()


class OutputConsole:
    """What all have in common at which nobody types."""

    input_fd = -1
    is_attached = True
    on_attached: Callable[[], None] | None = None
    on_room: Callable[[], None] | None = None
    on_resized: Callable[[], None] | None = None
    on_visit: Callable[[], None] | None = None
    keeps_input = False
    visit = 0

    def __init__(self, label: str) -> None:
        self.label = label

    def reopen(self, done: Callable[[], None]) -> None:
        done()

    def fds(self) -> dict[str, int]:
        return {}

    def read(self, _size_bytes: int) -> bytes:
        return b""

    def took(self, size_bytes: int, visit: int) -> None:
        """Nobody types."""

    def has_room(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return 0, 0

    def follow_size(self) -> None:
        """It has none."""

    def look_at_size(self) -> None:
        """It has none."""


class NullConsole(OutputConsole):
    def details(self) -> dict[str, str | int | bool]:
        return {"mode": "null"}

    def write(self, data: bytes) -> None:
        """Nobody wants it."""

    def close(self) -> None:
        """Nothing is held."""
