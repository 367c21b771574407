"""What is typed at a guest's console, on its way from the host to a device that takes a few bytes at a time."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _thread
    from collections.abc import Callable

# What may be typed ahead of the guest; its UART holds 16 bytes.
TYPED_LIMIT_BYTES = 4096


class ConsoleInput:
    """The bytes that wait for the guest at one console, at most `limit_bytes` of them.

    `receive` is the device's: it takes bytes and answers how many it took. It is called with `lock`, the device's, held.
    `on_room`, also called with the lock held, tells once that bytes may be offered again after some were refused.
    """

    def __init__(
        self,
        lock: _thread.LockType,
        receive: Callable[[bytes], int],
        on_room: Callable[[], None],
        *,
        waiting: bytes = b"",
        limit_bytes: int = TYPED_LIMIT_BYTES,
    ) -> None:
        self._lock = lock
        self._receive = receive
        self._on_room = on_room
        self._limit_bytes = limit_bytes
        self._waiting = bytearray(waiting)
        self._refused = False

    @property
    def waiting(self) -> bytes:
        """What the guest has not taken yet."""
        return bytes(self._waiting)

    def offer(self, data: bytes) -> int:
        """Bytes for the guest, behind those that wait; how many were taken, by the guest or to wait for it."""
        with self._lock:
            self._move()
            taken = self._receive(data) if not self._waiting else 0
            kept = data[taken : taken + max(0, self._limit_bytes - len(self._waiting))]
            self._waiting += kept
            self._refused = taken + len(kept) < len(data)
            return taken + len(kept)

    def feed(self) -> None:
        """The device has room: move on what waits. With the lock held."""
        self._move()
        if self._refused and len(self._waiting) < max(self._limit_bytes, 1):
            self._refused = False
            self._on_room()

    def forget(self) -> None:
        """Whoever typed it is gone, and what the guest has not taken with them."""
        with self._lock:
            self._waiting.clear()
            self._refused = False

    def _move(self) -> None:
        if self._waiting:
            del self._waiting[: self._receive(bytes(self._waiting))]
