"""systemctl, run for the person: they see the line, may answer its questions, and get its exit status as ours."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence

from vmservice.errors import EXIT_INTERRUPTED, HostError, HostFacilityMissing

# With such an ending the name of a unit is taken for complete: systemd.unit(5).
_UNIT_TYPES = frozenset(
    ("automount", "device", "mount", "path", "scope", "service", "slice", "snapshot", "socket", "swap", "target", "timer")
)


def run_systemctl(verb: str, names: Sequence[str], *, user: bool, ask_password: bool = True) -> int:
    """Run `systemctl VERB vm@NAME…`, having shown it; what is amiss it says itself. Returns its exit status.

    Raises HostError when it cannot be run, HostFacilityMissing where there is no systemctl.
    """
    process = start_systemctl(verb, names, user=user, ask_password=ask_password)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to systemctl too; whoever does not wait for that types it again
        process.wait()
        return EXIT_INTERRUPTED
    return exit_status(status)


def start_systemctl(verb: str, names: Sequence[str], *, user: bool, ask_password: bool) -> subprocess.Popen[bytes]:
    """As `run_systemctl`, but does not wait for it."""
    words = _words(verb, names, *([] if ask_password else ["--no-ask-password"]), user=user)
    print(shlex.join(words), file=sys.stderr, flush=True)
    try:
        return subprocess.Popen(words)
    except FileNotFoundError:
        raise HostFacilityMissing("systemctl is not installed; `vmservice run` needs no systemd") from None
    except OSError as error:
        raise HostError.from_os("cannot run systemctl", error) from None


def exit_status(status: int) -> int:
    """What a shell would say of a process with this status of `subprocess`."""
    return status if status >= 0 else 128 - status


def systemctl_line(verb: str, name: str, *, user: bool) -> str:
    """The command as a person would type it."""
    return shlex.join(_words(verb, [name], user=user))


def _words(verb: str, names: Sequence[str], *options: str, user: bool) -> list[str]:
    return ["systemctl", *(["--user"] if user else []), *options, verb, *(_unit(name) for name in names)]


def _unit(name: str) -> str:
    """`.service` is left out where it can be, as people do."""
    _, dot, ending = name.rpartition(".")
    return f"vm@{name}.service" if dot and ending in _UNIT_TYPES else f"vm@{name}"
