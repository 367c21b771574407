"""Programs that read images: run as the VM's account where that can be, since an image may be made to deceive them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from vmservice.errors import HostError, HostFacilityMissing

# Where programs for administrators are, which a plain user's PATH may lack.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
# Neither a pager, nor another language, nor what a person's settings say.
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C", "DEBUGFS_PAGER": "__none__"}
# A look; what may take as long as a disk does has no limit.
_TIMEOUT_SEC = 300


@dataclass(frozen=True)
class Account:
    """Whom a VM runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Image:
    """An open image, which the programs have by its descriptor. `account` is who runs them; None: whoever we are."""

    fd: int
    path: str
    size_bytes: int
    account: Account | None = None

    def run(
        self, line: list[str], package: str, output: int = subprocess.PIPE, typed: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end, whatever that is. `package` is the one of Debian that has it. `self.name` is the image.
        `typed` is its standard input."""
        return run(line, package, output=output, account=self.account, fd=self.fd, typed=typed)

    @property
    def name(self) -> str:
        """The image's path for such a program."""
        return f"/proc/self/fd/{self.fd}"


def run(
    line: list[str],
    package: str,
    *,
    output: int = subprocess.PIPE,
    account: Account | None = None,
    fd: int = -1,
    typed: bytes | None = None,
    timeout_sec: float | None = _TIMEOUT_SEC,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end. HostFacilityMissing where it is not installed."""
    try:
        return subprocess.run(
            line,
            stdin=subprocess.DEVNULL if typed is None else None,
            input=typed,
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
            env=_ENVIRONMENT,
            pass_fds=() if fd < 0 else (fd,),
            timeout=timeout_sec,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    except FileNotFoundError:
        raise HostFacilityMissing(f"{line[0]} is not installed; Debian has it in {package}") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{line[0]} did not come to an end within {timeout_sec:g} seconds") from None
    except OSError as error:
        raise HostError.from_os(f"cannot run {line[0]}", error) from error


def last_line(said: bytes) -> str:
    """The last words of a program, as a sentence can hold them: what it quotes of an image may be anything."""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return "".join(letter for letter in lines[-1] if letter.isprintable())[:300] if lines else "it says nothing"


def is_there(program: str) -> bool:
    """Whether it is installed."""
    import shutil

    return shutil.which(program, path=_PATH) is not None
