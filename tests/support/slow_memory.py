#!/usr/bin/python3 -IS
"""Runs in the container instead of the command vmservice, with the same arguments: a host that makes and takes back a piece of
memory in half a second. One that stands still after the third if there is a file "stuck" in the VM's state directory."""

import os
import sys
import time
from collections.abc import Iterator

sys.path.append("/usr/lib/python3/dist-packages")

from vmservice.cli import main
from vmservice.memory import backing, guest_memory

PIECE_BYTES = 4 << 20
STUCK = f"{os.environ['STATE_DIRECTORY']}/stuck"


def slow_pieces(total_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total_bytes, PIECE_BYTES):
        time.sleep(0.5)
        if start > 2 * PIECE_BYTES and os.path.exists(STUCK):
            time.sleep(1000)
        yield start, min(PIECE_BYTES, total_bytes - start)


backing.pieces = guest_memory.pieces = slow_pieces  # type: ignore[attr-defined]
sys.exit(main())
