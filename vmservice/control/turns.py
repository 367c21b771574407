"""The calls of one caller are acted on, and answered, in the order in which they came.

A verb may have to wait: for the bus to say who calls, for polkit to decide, for a person to type a password. What its caller
sends meanwhile, a look at a property too, waits behind it; nobody else waits. So a client that writes Pause and Get State in
one go is told "paused". Work that waits for the guest (Resize) is begun in its turn and holds nothing back.

What waits is bounded in number and bytes, for each caller, and for all whom the bus has not named yet. It waits no longer than
the check in front of it, and is forgotten with its caller or with the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from dbus_next.message import Message

from vmservice.control.authority import Authority
from vmservice.control.caller import Caller
from vmservice.control.dbus_transport import failure_reason
from vmservice.control.errors import ACCESS_DENIED, LIMITS_EXCEEDED, BusFault

# Calls that wait until the bus has said who makes them.
WAITING_LIMIT = 1024
WAITING_LIMIT_A_SENDER = 256
WAITING_BYTES_A_SENDER = 256 * 1024
# The event loop has other things to do than to work off what has piled up.
CALLS_A_TURN = 32
# How soon it is seen again whether the bus takes replies.
_RETRY_SEC = 0.02

# Called once: with None when the call may proceed, else with what its caller is told. Never called for a caller that is gone.
Act = Callable[[BusFault | None], None]


class _Queue:
    """What waits of one caller; the first is the one that the others wait for."""

    __slots__ = ("caller", "fault", "sender", "size_bytes", "task", "waiting")

    def __init__(self, sender: str, caller: Caller | None) -> None:
        self.sender = sender
        self.caller = caller
        self.fault: BusFault | None = None  # why the caller could not be identified
        self.waiting: deque[tuple[Message, Act, bool]] = deque()
        self.size_bytes = 0
        self.task: asyncio.Task[None] | None = None


class Turns:
    """The queues of all callers of one connection; `authority` says who may use a verb. While `is_full` says that enough
    replies wait for the bus to take them, nobody has a turn."""

    def __init__(self, authority: Authority, is_full: Callable[[], bool] = lambda: False) -> None:
        self._authority = authority
        self._connection_is_full = is_full
        self._queues: dict[str, _Queue] = {}
        self._unnamed = 0  # calls that wait until it is known who makes them
        authority.on_gone = self._on_gone

    def take(self, call: Message, act: Act, *, free: bool) -> None:
        """Let `act` have its turn: at once unless its caller has to wait. What is `free` needs nobody's permission."""
        queue = self._queues.get(call.sender)
        if queue is None:
            caller = self._authority.known(call.sender)
            if free or (caller is not None and caller.trusted):
                act(None)
                return
            queue = _Queue(call.sender, caller)
        if self._is_full(queue, call):
            act(BusFault(LIMITS_EXCEEDED, "too many calls wait for their turn; try again later"))
            return
        queue.waiting.append((call, act, free))
        queue.size_bytes += call.size_bytes
        if queue.caller is None:
            self._unnamed += 1
        if queue.task is None:
            self._queues[queue.sender] = queue
            queue.task = asyncio.get_running_loop().create_task(self._serve(queue))

    def close(self) -> None:
        """Forget everything that waits; for when the connection is gone."""
        for queue in list(self._queues.values()):
            self._forget(queue)

    def _is_full(self, queue: _Queue, call: Message) -> bool:
        """The first call of a caller is only turned away where all the places of those without a name are taken."""
        return (queue.caller is None and self._unnamed >= WAITING_LIMIT) or (
            bool(queue.waiting)
            and (len(queue.waiting) >= WAITING_LIMIT_A_SENDER or queue.size_bytes + call.size_bytes > WAITING_BYTES_A_SENDER)
        )

    async def _serve(self, queue: _Queue) -> None:
        """Work off what waits, oldest first, and what comes meanwhile."""
        served = 0
        while queue.waiting:
            call, act, free = queue.waiting[0]
            fault = None if free else await self._verdict(queue, call)
            while self._connection_is_full():
                await asyncio.sleep(_RETRY_SEC)
            if self._queues.get(queue.sender) is not queue:
                return
            queue.waiting.popleft()
            queue.size_bytes -= call.size_bytes
            if queue.caller is None:
                self._unnamed -= 1
            act(fault)
            served += 1
            if served % CALLS_A_TURN == 0:
                await asyncio.sleep(0)
        if self._queues.get(queue.sender) is queue:
            del self._queues[queue.sender]

    async def _verdict(self, queue: _Queue, call: Message) -> BusFault | None:
        if queue.caller is None and queue.fault is None:
            await self._identify(queue)
        if queue.caller is None or queue.caller.trusted:
            return queue.fault
        return await self._authority.check(queue.caller, call)

    async def _identify(self, queue: _Queue) -> None:
        """A caller without a name gets no verb done; one that is gone is forgotten."""
        try:
            caller = await self._authority.identify(queue.sender)
        except (OSError, TimeoutError, BusFault) as error:
            queue.fault = BusFault(ACCESS_DENIED, f"the bus does not say who calls: {failure_reason(error)}")
            return
        if caller is None:
            self._forget(queue)
            return
        self._unnamed -= len(queue.waiting)
        queue.caller = caller

    def _on_gone(self, sender: str) -> None:
        queue = self._queues.get(sender)
        if queue is not None:
            self._forget(queue)

    def _forget(self, queue: _Queue) -> None:
        del self._queues[queue.sender]
        if queue.caller is None:
            self._unnamed -= len(queue.waiting)
        queue.waiting.clear()
        if queue.task is not None and queue.task is not asyncio.current_task():
            queue.task.cancel()
