"""The mark of a test that is run on each Debian that vmservice is made for, as it asks of systemd, the bus or polkit."""

from __future__ import annotations

import pytest
from lab.root_tree import RELEASES

every_release = pytest.mark.parametrize("release", RELEASES, indirect=True)
