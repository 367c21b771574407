"""vmservice with a simulated machine whose guest says READY=1: run as a program, with the socket's path in $GUEST_SOCKET.

A stand-in for what the test machine lacks, KVM and a vsock: the guest's service manager is whoever connects to that socket.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.guest_socket import UnixListener

from vmservice import cli
from vmservice.service import main as service_main
from vmservice.vm.vm import Vm

if TYPE_CHECKING:
    from typing import Any


def run() -> int:
    class GuestsVm(Vm):
        """As without --sim."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "ready_by_guest": True})

    vars(service_main)["Vm"] = GuestsVm
    service_main._open_listener = lambda *_: UnixListener(Path(os.environ["GUEST_SOCKET"]))
    return cli.main()


if __name__ == "__main__":
    sys.exit(run())
