"""A guest's console at a pseudoterminal of its own."""

from __future__ import annotations

import os

from vmservice.errors import HostError
from vmservice.host.consoles.stream import StreamConsole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.host.consoles.base import Log


class PtyConsole(StreamConsole):
    """A pseudoterminal of our own; `path` is what `screen` or `picocom` opens, and the log says it.

    A link to it, called `label`, is put into `directory`, where `vmservice console` looks for it.
    """

    def __init__(self, log: Log, label: str = "serial", directory: str | None = None) -> None:
        import tty

        try:
            controller, terminal = os.openpty()
        except OSError as error:
            raise HostError.from_os("cannot make a pseudoterminal for the console", error) from None
        # The terminal's side stays open, so that the controller's does not fail with EIO while nobody is connected.
        self._terminal = terminal
        tty.setraw(terminal)
        os.set_blocking(controller, False)
        self.path = os.ttyname(terminal)
        super().__init__(label, controller, controller)
        self._link = _put_link(f"{directory}/{label}", self.path, log) if directory else ""
        log.info(f"the {label} console is at {self.path}")

    def close(self) -> None:
        super().close()
        self.input_fd = -1
        fd, self._terminal = self._terminal, -1
        if fd >= 0:
            os.close(fd)
        link, self._link = self._link, ""
        if link and os.path.islink(link):
            os.unlink(link)


def _put_link(link: str, target: str, log: Log) -> str:
    """Make `link`, in place of one of before; its path, or nothing if it cannot be."""
    try:
        if os.path.islink(link):
            os.unlink(link)
        os.symlink(target, link)
    except OSError as error:
        log.warning(f"cannot make {link}, by which `vmservice console` would find the console: {error.strerror}")
        return ""
    return link
