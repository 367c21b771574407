"""What start-back-ends gives a VM's unit to keep: descriptors for the VM's process, in the store that sd_notify(3) fills.

They are made as root and in the host's network namespace, of which the VM's own process has neither. That process finds them
among those that systemd passes on (`host/listen_fds.py`).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BARRIER_SEC = 5


def is_there() -> bool:
    """False where somebody runs this by hand: nobody would have them."""
    return "NOTIFY_SOCKET" in os.environ


def keep(name: str, fds: Sequence[int]) -> None:
    """Under that name these, and no longer those of a start before. Until the manager has them."""
    from systemd.daemon import notify

    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    for fd in fds:
        # Of a tap the manager's poll would say at once that something is wrong, and the manager would close it.
        notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fds=[fd])
    _wait_for_manager(notify)


def _wait_for_manager(notify: Callable[..., object]) -> None:
    """Until it has read all that was said: what comes from a process that has ended is dropped (sd_notify_barrier(3))."""
    import select

    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        notify("BARRIER=1", fds=[theirs])
        os.close(theirs)
        theirs = -1
        select.select([ours], [], [], _BARRIER_SEC)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
