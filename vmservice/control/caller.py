"""Who calls: the account behind a name on the bus, and whether that account may control a VM without being asked for more.

Three kinds of account may: root, the account that the VM itself runs as (it could stop its own process anyway), and members of
the group vmservice. Accounts that are there for VMs to run as are none of them: a VMM that a guest has taken over must not
steer the other VMs. Those are the accounts whose own group is vmservice; the group is what lets them own a bus name.

Members are those that the files name. The bus could tell the groups of the caller's process, but dbus-broker sends a process
descriptor along (GetConnectionCredentials) and throws whoever takes no descriptors off the bus; and a VM takes none from a bus
that everybody can send to: to close one may wait, for ever, for the file system of a stranger.
"""

from __future__ import annotations

import os

from vmservice.host import accounts

GROUP = "vmservice"


class Caller:
    """The account behind the unique bus name `sender`; a name never changes its account."""

    __slots__ = ("sender", "trusted", "uid")

    def __init__(self, sender: str, uid: int) -> None:
        self.sender = sender
        self.uid = uid
        self.trusted = is_trusted(uid)


def is_trusted(uid: int) -> bool:
    """Whether the account `uid` needs no authorization.

    Polkit knows accounts and groups that come from a server.
    """
    if uid == 0:
        return True
    try:
        account = accounts.account(uid)
        group = accounts.group(GROUP)
    except OSError:
        # Out of descriptors, say. Not even our own account then: other VMs may run as it.
        return False
    if account is not None and group is not None and account[1] == group[0]:
        return False
    if uid == os.geteuid():
        return True
    return account is not None and group is not None and account[0] in group[1]
