#!/usr/bin/python3 -IS
"""Runs in the container instead of the command vmservice, with the same arguments: a VMM in which something hangs for good.

What hangs is what the VM's state directory says in the file "wedge": "device", at the next byte that its guest prints, or
"loop". The file is gone by then, so that the VMM which is started next is sound.
"""

import os
import sys
import time

sys.path.append("/usr/lib/python3/dist-packages")

from vmservice.cli import main
from vmservice.devices.serial import Serial
from vmservice.service.watchdog import Watchdog

WEDGE = f"{os.environ['STATE_DIRECTORY']}/wedge"


def is_due(what: str) -> bool:
    try:
        with open(WEDGE) as file:
            if file.read() != what:
                return False
    except FileNotFoundError:
        return False
    os.remove(WEDGE)
    return True


def hang() -> None:
    while True:
        time.sleep(1000)


def write(serial: Serial, offset: int, data: bytes, write=Serial.write) -> None:  # type: ignore[no-untyped-def]
    if is_due("device"):
        hang()
    write(serial, offset, data)


def answer(watchdog: Watchdog, answer=Watchdog._loop_answers) -> None:  # type: ignore[no-untyped-def]
    """What the loop does when it is asked for a sign of life."""
    if is_due("loop"):
        hang()
    answer(watchdog)


Serial.write = write  # type: ignore[assignment,method-assign]
Watchdog._loop_answers = answer  # type: ignore[assignment,method-assign]
sys.exit(main())
