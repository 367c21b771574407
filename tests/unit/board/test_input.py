"""What is typed at a console waits for a guest that takes a little at a time, up to a limit, and goes with its typist."""

from __future__ import annotations

import threading

from vmservice.board.input import TYPED_LIMIT_BYTES, ConsoleInput


class Receiver:
    """A device that takes up to `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.received = b""

    def take(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.received += taken
        return len(taken)


def make(room: int, limit_bytes: int = TYPED_LIMIT_BYTES) -> tuple[Receiver, ConsoleInput, list[str]]:
    device, told = Receiver(room), list[str]()
    return device, ConsoleInput(threading.Lock(), device.take, lambda: told.append("room"), limit_bytes=limit_bytes), told


def test_bytes_arrive_in_order_as_the_device_has_room() -> None:
    device, typed, _ = make(4)
    assert typed.offer(b"serial") == 6
    assert (device.received, typed.waiting) == (b"seri", b"al")
    device.room = 1
    typed.feed()
    assert typed.offer(b" more") == 5
    assert (device.received, typed.waiting) == (b"seria", b"l more")
    device.room = 100
    typed.feed()
    assert (device.received, typed.waiting) == (b"serial more", b"")


def test_a_limit_bounds_what_waits_and_room_is_told_once() -> None:
    device, typed, told = make(0)
    assert typed.offer(b"x" * (TYPED_LIMIT_BYTES + 1)) == TYPED_LIMIT_BYTES
    assert typed.offer(b"y") == 0
    typed.feed()
    assert told == [], "nothing has moved"
    device.room = 2
    typed.feed()
    typed.feed()
    assert told == ["room"]
    assert typed.offer(b"yyy") == 2


def test_without_typing_ahead_only_the_device_takes_bytes() -> None:
    device, typed, told = make(2, limit_bytes=0)
    assert typed.offer(b"abc") == 2
    assert typed.offer(b"c") == 0
    device.room = 5
    typed.feed()
    assert (told, typed.waiting, device.received) == (["room"], b"", b"ab")


def test_what_nobody_took_goes_with_whoever_typed_it() -> None:
    device, typed, told = make(0)
    typed.offer(b"rm -rf ")
    typed.forget()
    device.room = 100
    typed.feed()
    typed.offer(b"ls")
    assert device.received == b"ls"
    assert told == []
