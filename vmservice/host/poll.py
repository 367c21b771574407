"""poll(2) where even this may be refused: it takes no more entries than RLIMIT_NOFILE lets a process have descriptors.

The limit can be lowered under a VM, to below what it holds (prlimit(2)). What is open stays open then, and goes on working.
"""

from __future__ import annotations

import errno
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select

_AGAIN_SEC = 0.1


def wait(entries: select.poll, timeout_ms: float | None) -> list[tuple[int, int]]:
    """What `entries` have to report within `timeout_ms`, None is for ever. Where poll is refused: nothing, a moment later.

    For callers that look at all that they wait for when they come back, whatever is reported."""
    try:
        return entries.poll(timeout_ms)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        time.sleep(_AGAIN_SEC if timeout_ms is None else min(_AGAIN_SEC, max(0.0, timeout_ms) / 1000))
        return []
