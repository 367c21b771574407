"""The way to one back end of vhost-user, for as long as the process lives: connections to it come and go.

The back end listens at a socket, which systemd holds for it: it may end and be started anew, and is found at the same place.
"""

from __future__ import annotations

import os
import time

from vmservice.errors import HostError
from vmservice.host.vhost_user import REPLY_SEC, VhostUser, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

# A back end that is started by being connected to, on a busy host.
FIRST_ANSWER_SEC = 20.0
# A path exists before anybody listens at it, and for a moment after.
_REFUSED_SEC = 1.0
_AGAIN_SEC = 0.02


class BackEndLink:
    """`path` is the back end's socket, `name` reads as it in a sentence, and `advice` as what to do where nobody listens.

    From `open` on, `features`, `queues` and the first `config_bytes` of the configuration space are known; the features and
    virtqueues that a later connection must have too, for a driver knows of them. With `config_bytes` 0 the configuration space
    is the front end's own. `known_queues` are those of a back end that cannot say how many it has.
    """

    def __init__(self, path: str, name: str, config_bytes: int, advice: str, *, known_queues: int = 0) -> None:
        self.path = path
        self.name = name
        self.features = 0
        self.queues = 0
        self.config = b""
        self.front: VhostUser | None = None
        self._opening: VhostUser | None = None
        self._is_cut = False
        self._config_bytes = config_bytes
        self._known_queues = known_queues
        self._advice = advice

    def open(self, first_answer_sec: float = FIRST_ANSWER_SEC) -> VhostUser:
        """The connection, made where there is none. HostError, with none left, when it cannot be."""
        if self.front is not None and not self.front.is_lost:
            return self.front
        self.close()
        self._opening = front = VhostUser(self._connect(first_answer_sec), self.name, first_answer_sec)
        try:
            if self._is_cut:
                raise HostError(f"{self.name} is needed no more")
            front.open()
            front.reply_sec = REPLY_SEC
            queues = self._known_queues or front.queues
            if self.queues and (queues < self.queues or self.features & ~front.features):
                raise HostError(
                    f"{self.name} has come back as another device: its features are {front.features:#x} and not"
                    f" {self.features:#x}, its virtqueues {queues} and not {self.queues}"
                )
            config = self._config_of(front)
        except HostError as error:
            front.close()
            raise HostError(f"{error}; {self._advice}", error.errno) from error
        except BaseException:
            front.close()
            raise
        finally:
            self._opening = None
        if not self.queues:
            self.features, self.queues = front.features, queues
        self.front, self.config = front, config
        return front

    def _connect(self, timeout_sec: float) -> _socket.socket:
        deadline = time.monotonic() + _REFUSED_SEC
        while True:
            try:
                return connect(self.path, timeout_sec)
            except (ConnectionRefusedError, BlockingIOError) as error:  # nobody listens yet, or many others wait
                if time.monotonic() >= deadline:
                    raise self._nobody(error) from error
                time.sleep(_AGAIN_SEC)
            except OSError as error:
                raise self._nobody(error) from error

    def _nobody(self, error: OSError) -> HostError:
        number = error.errno or 0
        return HostError(f"{self.name} cannot be reached at {self.path}: {os.strerror(number)}; {self._advice}", number)

    def read_config(self) -> bytes:
        """The configuration space as it is now, which `config` is from then on."""
        self.config = self._config_of(self.open())
        return self.config

    def _config_of(self, front: VhostUser) -> bytes:
        return front.read_config(self._config_bytes) if self._config_bytes else b""

    def cut(self) -> None:
        """From any thread: who waits for the back end's answer waits no more, and there is no connection until `allow`."""
        self._is_cut = True
        for front in (self.front, self._opening):
            if front is not None:
                front.cut()

    def allow(self) -> None:
        """Connections may be made again."""
        self._is_cut = False

    def close(self) -> None:
        front, self.front = self.front, None
        if front is not None:
            front.close()
