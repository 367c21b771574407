"""`vmservice newer-kernel NAME`: what the unit of a VM that `create` has made runs when the VM has ended, as the VM's account.

The guest may have got a new kernel meanwhile, which it will not be started with. The journal is told so, once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vmservice.create import places
from vmservice.errors import UsageError, VmmError
from vmservice.image.guest import look_into
from vmservice.image.tools import Image

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def main(words: Sequence[str]) -> int:
    """Nothing that goes wrong here is of the VM's end: a disk that cannot be read now is not looked at."""
    if len(words) != 1:
        raise UsageError("usage: vmservice newer-kernel NAME")
    folder = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    try:
        said = newer_kernel(words[0], folder) if folder else None
    except (VmmError, OSError):
        return os.EX_OK
    if said is not None:
        # A notice, to systemd: sd-daemon(3).
        print(f"<5>{said}", file=sys.stderr)
    return os.EX_OK


def newer_kernel(name: str, folder: str) -> str | None:
    """What there is to say; None where there is nothing, or where it has been said."""
    made = places.read_made(folder)
    if made is None or not made.kernel:
        return None
    fd = os.open(f"{folder}/{places.DISK}", _OPEN)
    try:
        guest = look_into(Image(fd, places.DISK, os.fstat(fd).st_size))
    finally:
        os.close(fd)
    if guest.kernel == made.kernel or _was_told(folder, guest.kernel):
        return None
    user = "" if folder.startswith(f"{places.SYSTEM_STATE}/") else " --user"
    return (
        f"the guest of {name} would start with {guest.kernel} now, and is started with {made.kernel}, which was taken out of"
        f" its disk before; vmservice update-kernel{user} {name} takes the other one"
    )


def _was_told(folder: str, kernel: str) -> bool:
    """And from now on it was."""
    path = f"{folder}/{places.TOLD}"
    try:
        with open(path, encoding="utf-8") as file:
            if file.read(len(kernel) + 1) == kernel:
                return True
    except FileNotFoundError:
        pass
    with open(path, "w", encoding="utf-8") as file:
        file.write(kernel)
    return False
