"""What start-back-ends gives a VM's unit to keep: descriptors for the VM's process, in the store that sd_notify(3) fills.

They are made as root and in the host's network namespace, of which the VM's own process has neither. That process finds them
among those that systemd passes on (`host/listen_fds.py`).
"""

from __future__ import annotations

import os

from vmservice.service.sd_notify import wait_read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_SEC = 5.0


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
    # What comes from a process that has ended may be dropped.
    wait_read(lambda text, fds: notify(text, fds=fds), _READ_SEC)
