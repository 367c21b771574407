"""Landlock: this process gives up, for good, the right to signal or trace any process but itself.

VMs of one account could otherwise end each other: the kernel asks of a signal only whose it is. Landlock's scopes (Linux 6.12,
landlock(7), <linux/landlock.h>) are the means that leaves everything else as it is.
"""

from __future__ import annotations

import ctypes
import os
import struct

# x86-64's numbers, <asm/unistd_64.h>; libc has no functions for them.
_SYS_CREATE_RULESET = 444
_SYS_RESTRICT_SELF = 446

_CREATE_RULESET_VERSION = 1 << 0
_SCOPE_SIGNAL = 1 << 1
_ABI_WITH_SCOPES = 6

_PR_SET_NO_NEW_PRIVS = 38  # <linux/prctl.h>; what the kernel asks of who has no capability

_libc = ctypes.CDLL(None)


def confine() -> bool:
    """To be called before there is a second thread: only the caller, and who descends from it, is confined.

    False where the kernel, or a system call filter, has no such scope; nothing is changed then.
    """
    version = _libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if version < _ABI_WITH_SCOPES:
        return False
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped.
    attributes = struct.pack("<QQQ", 0, 0, _SCOPE_SIGNAL)
    ruleset = _libc.syscall(_SYS_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            return False
        return bool(_libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)
