"""`vmservice manager [--user]`: what vmservice-manager.service runs.

The bus starts it when somebody calls org.vmservice.Manager1. It ends when nobody uses it or with SIGTERM, both with status 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from vmservice import __version__
from vmservice.config.names import config_directory
from vmservice.errors import UsageError
from vmservice.manager.manager import Manager
from vmservice.manager.names import INTERFACE

_WARNING = 4  # syslog(3)


def main(words: Sequence[str]) -> int:
    if list(words) not in ([], ["--user"]):
        raise UsageError("usage: vmservice manager [--user]")
    asyncio.run(_run(user=bool(words)))
    return os.EX_OK


async def _run(*, user: bool) -> None:
    manager = Manager(
        "session" if user else "system",
        config_directory(user=user),
        __version__,
        on_acquired=lambda: _notify("READY=1", f"STATUS=on the bus as {INTERFACE}"),
        on_leaving=lambda: _notify("STOPPING=1"),
        log=_log,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, manager.close)
    await manager.run()


def _notify(*lines: str) -> None:
    """sd_notify(3): nothing where no service manager has asked for it, or it is gone."""
    from systemd.daemon import notify

    try:
        notify("\n".join(lines))
    except OSError as error:
        _log(f"the service manager cannot be told: {error.strerror or error}")


def _log(text: str) -> None:
    """In the journal with its priority, sd-daemon(3), and plain where a person reads it."""
    prefix = f"<{_WARNING}>" if "JOURNAL_STREAM" in os.environ else "vmservice: "
    print("\n".join(f"{prefix}{line}" for line in text.splitlines()), file=sys.stderr, flush=True)
