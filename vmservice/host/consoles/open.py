"""Where a guest's console or port goes: the journal, a file, a terminal, a pseudoterminal, a socket, or nowhere."""

from __future__ import annotations

import os

from vmservice.errors import ConfigError
from vmservice.host.consoles.base import NullConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Console, Log
    from vmservice.host.consoles.mover import Wakes


def open_console(
    mode: str,
    path: str | None,
    vm_name: str,
    log: Log,
    label: str = "serial",
    *,
    mover: Wakes,
    is_stream: bool = False,
    passed_fd: int = -1,
) -> Console:
    """The host's side of a guest's console; `label` is what messages and the journal call that console.

    `is_stream` is for bytes that no person reads. `passed_fd` is a listening socket that systemd has made, for mode "socket".
    Raises ConfigError for a file that cannot be written, HostError for a terminal or socket.
    """
    if mode == "journal":
        from vmservice.host.consoles.journal import JournalConsole

        return JournalConsole(vm_name, mover, label=label)
    if mode == "file":
        if path is None:
            raise ConfigError(f'{label}: mode "file" needs a path')
        from vmservice.host.consoles.file import FileConsole

        return FileConsole(path, log, mover, label)
    if mode == "tty":
        from vmservice.host.consoles.stream import StreamConsole, own_description

        output_fd = own_description(1)
        if os.get_blocking(output_fd):
            mover = mover.apart()
        console = StreamConsole(label, mover, output_fd, 0)
        mover.add(console)
        return console
    if mode == "pty":
        from vmservice.host.consoles.pty import PtyConsole

        # systemd gives the unit one (RuntimeDirectory=).
        return PtyConsole(log, mover, label, os.environ.get("RUNTIME_DIRECTORY"))
    if mode == "socket":
        from vmservice.host.consoles.socket import open_socket_console

        directory = os.environ.get("RUNTIME_DIRECTORY")
        return open_socket_console(log, mover, label, directory=directory, passed_fd=passed_fd, is_stream=is_stream)
    if mode in ("null", "off"):
        return NullConsole(label)
    raise ConfigError(f'{label}: mode "{mode}" is unknown; it can be journal, tty, file, pty, socket, null or off')
