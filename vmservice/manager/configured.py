"""The VMs that have a configuration: a file of their own, or drop-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmservice.config.names import DROP_INS_SUFFIX, configured_by, is_name
from vmservice.errors import HostError
from vmservice.host.folder_watch import FolderWatch
from vmservice.manager.model import Model


class Configured:
    """Keeps `model` told of the files that `watch`, which is closed with this, finds. Made inside the running event loop."""

    def __init__(self, watch: FolderWatch, model: Model, log: Callable[[str], None]) -> None:
        self._watch = watch
        self._model = model
        self._log = log
        self._told = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(watch.fd, self._read)
        self._read()

    def close(self) -> None:
        self._loop.remove_reader(self._watch.fd)
        self._watch.close()

    def _read(self) -> None:
        try:
            names = self._watch.names()
            closed = self._watch.closed
        except HostError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._log(f"{error}; VMs are not shown by their configuration files")
            names = closed = []
        configured = {name for file in names if (name := configured_by(file)) is not None}
        # What cannot be looked into may have drop-ins.
        configured.update(name for folder in closed if is_name(name := folder.removesuffix(DROP_INS_SUFFIX)))
        self._model.set_configured(configured)
