"""systemctl, run for the person: they see the line, may answer its questions, and get its exit as ours."""

from __future__ import annotations

import shlex
import subprocess

from vmservice.errors import HostError, HostFacilityMissing


def run_systemctl(verb: str, name: str, *, user: bool) -> None:
    """Run `systemctl VERB vm@NAME`, having printed it; what is amiss it says itself.

    Raises HostError when it fails, HostFacilityMissing where there is no systemctl.
    """
    line = systemctl_line(verb, name, user=user)
    print(line, flush=True)
    try:
        status = subprocess.run(shlex.split(line), check=False).returncode
    except FileNotFoundError:
        raise HostFacilityMissing("systemctl is not installed; `vmservice run` needs no systemd") from None
    except OSError as error:
        raise HostError.from_os("cannot run systemctl", error) from None
    if status != 0:
        raise HostError(f"`{line}` has failed with exit status {status}")


def systemctl_line(verb: str, name: str, *, user: bool) -> str:
    """The command as a person would type it."""
    return f"systemctl{' --user' if user else ''} {verb} vm@{name}"
