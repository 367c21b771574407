"""Sockets that systemd made and passed on: sd_listen_fds_with_names(3).

By hand, for these are wanted before the guest runs: `systemd.daemon` imports `socket`, which takes 5.8 ms, a third of a start.
"""

from __future__ import annotations

import os

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_MOST = 4096


def take_listen_fds() -> list[tuple[str, int]]:
    """(name, descriptor) of each, which are the caller's from now on and no child's; nothing when called again.

    LISTEN_PID says whom they are for: a process that was started by such a one may have inherited the variables.
    """
    pid, count, names = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not (pid.isdecimal() and int(pid) == os.getpid() and count.isdecimal() and 0 < int(count) <= _MOST):
        return []
    given = names.split(":") if names else []
    taken = []
    for number in range(int(count)):
        os.set_inheritable(_FIRST_FD + number, False)
        taken.append((given[number] if number < len(given) else "unknown", _FIRST_FD + number))
    return taken
