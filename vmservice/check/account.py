"""Whether an account may use files: the kernel is asked by a process that becomes that account, so groups and ACLs count."""

from __future__ import annotations

import ctypes
import grp
import json
import os
import pwd
import stat

from vmservice.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_CAPABILITY_VERSION_3 = 0x20080522  # <linux/capability.h>
_ANSWER_LIMIT_BYTES = 1 << 20


class Account:
    """Who a service runs as. None of root's capabilities is left to it, whoever it is: the VM's unit has none."""

    __slots__ = ("gid", "groups", "name", "uid")

    def __init__(self, name: str, uid: int, gid: int, groups: Sequence[int] = ()) -> None:
        self.name: Final = name
        self.uid: Final = uid
        self.gid: Final = gid
        self.groups: Final = tuple(groups)


class Question:
    """Whether all of `path` below the directory `base` may be searched, and then used in `mode` of access(2)."""

    __slots__ = ("base", "mode", "path")

    def __init__(self, path: str, mode: int, base: str = "/") -> None:
        self.path: Final = path
        self.mode: Final = mode
        self.base: Final = base


def account_of(unit: Mapping[str, Any]) -> Account | None:
    """Of the unit's User=, Group= and SupplementaryGroups=; None where one of them is not there."""
    name = str(unit.get("User", "")) or "root"
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        group = str(unit.get("Group", ""))
        gid = _gid(group) if group else entry.pw_gid
        more = [_gid(str(one)) for one in unit.get("SupplementaryGroups", ())]
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, gid, sorted({*os.getgrouplist(entry.pw_name, gid), *more}))


def _gid(group: str) -> int:
    return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid


def refusals(account: Account | None, questions: Sequence[Question]) -> list[str | None]:
    """For each question None, or the path that the account may not search or use. `account` None is who we are; another one
    takes root. HostError where nobody could be asked."""
    bases: list[int] = []
    try:
        bases += (os.open(one.base, os.O_PATH | os.O_CLOEXEC) if one.base != "/" else -1 for one in questions)
        if account is None:
            return [_refusal(one, base) for one, base in zip(questions, bases, strict=True)]
        return _ask_as(account, questions, bases)
    finally:
        for fd in bases:
            if fd >= 0:
                os.close(fd)


def _refusal(question: Question, base: int) -> str | None:
    start = question.base if base < 0 else f"/proc/self/fd/{base}"
    rest = question.path[len(question.base) :].strip("/")
    place, name = start.rstrip("/"), question.base.rstrip("/")
    for part in rest.split("/") if rest else ():
        if not os.access(place or "/", os.X_OK):
            return name or "/"
        place, name = f"{place}/{part}", f"{name}/{part}"
    return None if os.access(place or "/", question.mode) else name or "/"


def _ask_as(account: Account, questions: Sequence[Question], bases: Sequence[int]) -> list[str | None]:
    answers, say = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _become(account)
            os.write(say, json.dumps([_refusal(one, base) for one, base in zip(questions, bases, strict=True)]).encode())
        finally:
            os._exit(0)
    os.close(say)
    with open(answers, "rb") as file:
        text = file.read(_ANSWER_LIMIT_BYTES)
    os.waitpid(child, 0)
    try:
        found: list[str | None] = json.loads(text)
    except ValueError:
        raise HostError(f"cannot find out what the account {account.name} may use: no process could become it") from None
    return found


def _become(account: Account) -> None:
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    # /proc/self/fd is root's in a process that has changed its account, until this.
    libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(ctypes.byref(header), ctypes.byref(nothing)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def shown_rights(path: str) -> str:
    """`mode 0600, of root`: who may do what with it, as far as mode bits say; empty where that cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"mode {stat.S_IMODE(status.st_mode):04o}, of {_user(status.st_uid)}:{_group(status.st_gid)}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
