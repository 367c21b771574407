"""The near end of the channel to the agent in the lab's host; agent.py says what the lines are."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class HostDied(Exception):
    """The nested host is gone or does not answer: nothing is said about what was tested."""


class CommandFailed(AssertionError):
    """A command in the host that should have succeeded did not."""


class Completed:
    """What a command in the host did. `returncode` is negative when a signal ended it."""

    def __init__(self, command: str, returncode: int, stdout: str, stderr: str, timed_out: bool) -> None:
        self.command = command
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.timed_out = timed_out

    def __repr__(self) -> str:
        ended = "took too long" if self.timed_out else f"exit status {self.returncode}"
        return f"`{self.command}`: {ended}\n{self.stdout}{self.stderr}"


class Channel:
    """One connection. `alive` says whether the host still exists; one request runs at a time."""

    # What an answer may take beyond the command's own timeout, on a host that is emulated on a busy machine.
    _GRACE_SEC = 60.0
    # After so long without an answer another ping is due, if the last one has been read.
    _PING_SEC = 0.5

    def __init__(self, path: Path, alive: Callable[[], bool]) -> None:
        self._alive = alive
        self._pending = b""
        # Answers to an earlier connection's requests may still be under way.
        self._id = int.from_bytes(os.urandom(4), "little")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(_short(path))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def wait_ready(self, timeout_sec: float) -> None:
        """Returns when the agent answers."""
        deadline = time.monotonic() + timeout_sec
        while True:
            # QEMU reads nothing until the agent has opened the port; an agent that starts anew may lose what was read.
            if not self._unread():
                self._id += 1
                self._send({"id": self._id, "ping": self._id}, begin=b"\n")
            pause = time.monotonic() + self._PING_SEC
            while (message := self._receive(min(pause, deadline))) is not None:
                if message.get("pong") == self._id:
                    return
            if time.monotonic() >= deadline:
                raise HostDied(f"the lab's host did not come up in {timeout_sec:.0f} s")

    def run(self, command: str, timeout_sec: float, stdin: bytes, on_output: Callable[[str], None] | None) -> Completed:
        """Runs a bash command line as root and waits for its end. `on_output` gets both streams' text as it comes."""
        self._id += 1
        self._send({"id": self._id, "run": command, "timeout": timeout_sec, "stdin": base64.b64encode(stdin).decode()})
        parts: dict[str, list[bytes]] = {"out": [], "err": []}
        deadline = time.monotonic() + timeout_sec + self._GRACE_SEC
        while (message := self._receive(deadline)) is not None:
            if message.get("id") != self._id:
                continue
            if "exit" in message:
                streams = {name: b"".join(data).decode(errors="replace") for name, data in parts.items()}
                return Completed(command, message["exit"], streams["out"], streams["err"], message["timeout"])
            for name in parts.keys() & message.keys():
                parts[name].append(base64.b64decode(message[name]))
                if on_output is not None:
                    on_output(parts[name][-1].decode(errors="replace"))
        raise HostDied(f"the lab's host did not answer within {timeout_sec + self._GRACE_SEC:.0f} s: `{command}`")

    def _unread(self) -> bool:
        """Whether the far end has yet to read something of what was sent."""
        (unread_bytes,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return bool(unread_bytes)

    def _send(self, message: dict[str, Any], begin: bytes = b"") -> None:
        self._socket.settimeout(self._GRACE_SEC)
        try:
            self._socket.sendall(begin + json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise HostDied(f"the channel to the lab's host broke: {error}") from error

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message, or None at the deadline."""
        while True:
            line, separator, rest = self._pending.partition(b"\n")
            if separator:
                self._pending = rest
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict):
                    return message
                continue
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            self._socket.settimeout(min(remaining, 1.0))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                if not self._alive():
                    raise HostDied("the lab's host ended") from None
                continue
            except OSError as error:
                raise HostDied(f"the channel to the lab's host broke: {error}") from error
            if not data:
                raise HostDied("the lab's host ended")
            self._pending += data


def _short(path: Path) -> str:
    """A Unix socket's address holds 107 bytes; a path through /proc/self/fd would need the folder open, so say it plainly."""
    text = str(path)
    if len(text.encode()) > 107:
        raise ValueError(f"{text}: too long for a socket's address; choose a shorter TMPDIR")
    return text
