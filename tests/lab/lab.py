"""The lab's tool: lab.py build | start | run COMMAND… | shell | stop | demo.

`start` leaves a host running, with the package of this checkout installed; `run` and `shell` use it; `demo` has one of its own.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import socket
import subprocess
import sys
import termios
import tty
from pathlib import Path

# Run as a script: its own folder gives way to tests/, so that `lab` is this package and not this file.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from lab.channel import HostDied
from lab.demo import demo
from lab.guest import guest_images
from lab.host import LabHost
from lab.images import guest_disks, host_disk, host_initramfs
from lab.prepare import install, payload
from support.cache import cache_dir, say

_ESCAPE = b"\x1d"


def _directory() -> Path:
    """The run folder of the host that `start` leaves behind."""
    return cache_dir() / "host"


def _build() -> int:
    host_disk()
    host_initramfs()
    guest_disks()
    guest_images()
    return 0


def _start() -> int:
    host = LabHost(_directory())
    if host.alive():
        say("a host is running already")
        return 0
    files = payload()
    say("booting the host …")
    host.start(files, detached=True)
    install(host)
    say(f"up; its console is {host.console_log}")
    return 0


def _run(words: list[str]) -> int:
    """One word is a shell command line; several are a command and its arguments."""
    if not words:
        print("lab.py: run which command?", file=sys.stderr)
        return 64
    host = LabHost(_directory())
    host.attach()
    command = words[0] if len(words) == 1 else shlex.join(words)

    def show(text: str) -> None:
        print(text, end="", flush=True)

    return host.run(command, timeout=3600, on_output=show).returncode


def _shell() -> int:
    """Joins the terminal to the host's serial console until Ctrl-]."""
    if not sys.stdin.isatty():
        print("lab.py: shell needs a terminal; `lab.py run COMMAND` does not", file=sys.stderr)
        return 64
    _start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        console.connect(str(_directory() / "console"))
        print("the host's console; Ctrl-] leaves it\r")
        console.sendall(b"\n")
        before = termios.tcgetattr(0)
        tty.setraw(0)
        try:
            _join(console)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            print()
    return 0


def _join(console: socket.socket) -> None:
    while True:
        for ready in select.select([0, console.fileno()], [], [])[0]:
            if ready == 0:
                typed = os.read(0, 4096)
                if not typed or _ESCAPE in typed:
                    return
                console.sendall(typed)
            else:
                shown = console.recv(4096)
                if not shown:
                    return
                os.write(1, shown)


def _stop() -> int:
    LabHost(_directory()).stop()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab.py", description="A Debian host with a /dev/kvm, for trying vmservice in.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", help="build the images")
    commands.add_parser("start", help="start a host and leave it running")
    run = commands.add_parser("run", help="run a command in it, as root")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="one word is a shell command line")
    commands.add_parser("shell", help="a shell in it, on its serial console")
    commands.add_parser("stop", help="end it")
    commands.add_parser("demo", help="show the main job, step by step")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("lab.py: run this as root: it mounts and boots a host", file=sys.stderr)
        return 77
    try:
        return _dispatch(options)
    except KeyboardInterrupt:
        return 130
    except (HostDied, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 1


def _dispatch(options: argparse.Namespace) -> int:
    match options.command:
        case "run":
            return _run(options.words)
        case "build":
            return _build()
        case "start":
            return _start()
        case "shell":
            return _shell()
        case "stop":
            return _stop()
        case _:
            return demo()


if __name__ == "__main__":
    sys.exit(main())
