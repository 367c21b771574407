"""One command for several VMs at once."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence

from vmservice.client.vms import with_near_name
from vmservice.config.names import NAME_REST
from vmservice.errors import VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.client.bus import Bus


async def for_each(bus: Bus, names: Sequence[str], work: Callable[[str], Awaitable[None]]) -> int:
    """Do `work` for all, side by side: an error of one is told when it happens, and keeps no other from being done.

    The exit status of the first of `names` that failed, 0 where none did.
    """

    async def one(name: str) -> int:
        try:
            await work(name)
        except VmmError as error:
            tell(str(await with_near_name(bus, error)), name if len(names) > 1 else "")
            return error.exit_status
        return os.EX_OK

    statuses = await asyncio.gather(*(one(name) for name in names))
    return next((status for status in statuses if status != os.EX_OK), os.EX_OK)


def tell(text: str, name: str = "") -> None:
    """A note for a person, apart from what the command is asked for. With `name` it is about that VM, as it may say itself."""
    _, named, behind = text.partition(f"the VM {name}")
    is_named = text.startswith(f"{name} ") or (named and behind[:1] not in NAME_REST)
    about = "" if is_named or not name else f"{name}: "
    print(f"vmservice: {about}{text}", file=sys.stderr, flush=True)
