"""The Debian package of this checkout, built once a process."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

# Where hosts under test have it.
INSTALLED_FROM = "/lab/vmservice.deb"

CHECKOUT = Path(__file__).parents[2]


@functools.cache
def debian_package() -> Path:
    """The path of the .deb that packaging/build-deb makes of this checkout."""
    built = subprocess.run(
        [CHECKOUT / "packaging/build-deb"], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    return CHECKOUT / built.stdout.strip()
