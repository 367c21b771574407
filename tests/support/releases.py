"""The marks of a test that is run on each Debian that vmservice is made for, as it asks of systemd, the bus or polkit."""

from __future__ import annotations

import pytest
from lab.root_tree import RELEASES

every_release = pytest.mark.parametrize("release", RELEASES, indirect=True)

# On the newest one, and on the others only by `make test-long`.
newest_release = pytest.mark.parametrize(
    "release", [RELEASES[0], *(pytest.param(release, marks=pytest.mark.long) for release in RELEASES[1:])], indirect=True
)
