"""A configuration as the VM's unit would meet it: each file that it names, judged for the unit's account and sandbox.

Whether the files are there and of use is for `configuration.py`; what is not there is passed over here.
"""

from __future__ import annotations

import os
import stat

from vmservice.check import named
from vmservice.check.account import Account, Question, account_of, refusals, shown_rights
from vmservice.check.devices import may_use_device
from vmservice.check.unit import read_unit
from vmservice.check.view import Sight, View, is_below, view_of_unit
from vmservice.config.names import is_made_by_unit
from vmservice.errors import PATH_SHOWN_MAX, ConfigError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

    from vmservice.check.named import NamedFile
    from vmservice.config.load import Config

_HOME = "ProtectHome="
# The control group of this process, which systemd calls by its unit: cgroups(7).
CONTROL_GROUP = "/proc/self/cgroup"


class Judge:
    """Of the files of one configuration. `account` None is whoever we are; `who` is how the sentences call what runs the VM."""

    def __init__(self, config: Config, who: str, unit: Mapping[str, Any], view: View, account: Account | None) -> None:
        self.mistakes: list[ConfigError] = []
        # What a person should know all the same, a sentence each.
        self.notes: list[str] = []
        self._config: Final = config
        self._who: Final = who
        self._unit: Final = unit
        self._view: Final = view
        self._account: Final = account
        self._asked: list[tuple[NamedFile, Question]] = []

    def judge(self, *, ask: bool = True, uses: Sequence[str] = (named.READ, named.WRITE, named.MAKE, named.BACK)) -> None:
        """All files of those uses; without `ask` nothing of the account. HostError where it cannot be asked."""
        for file in named.named_files(self._config):
            if file.use in uses:
                self._look(file)
        if not ask or not self._asked:
            return
        answers = refusals(self._account, [question for _, question in self._asked])
        told = set()
        for (file, question), refused in zip(self._asked, answers, strict=True):
            if refused is not None and file not in told:
                told.add(file)
                self._refuse(file, self._not_permitted(file, question, refused))

    def _look(self, file: NamedFile) -> None:
        """What the sandbox says; then what is to be asked of the account."""
        met = self._view.follow(file.path)
        last = met[-1]
        is_new = file.use == named.MAKE and not _is_there(last)
        if is_new:
            folder = self._view.follow(os.path.dirname(file.path))
            if not folder[-1].host and not folder[-1].read_only:
                self.notes.append(
                    f"{self._config.path}: {file.what} is {_shown(file.path)}, which will be in a {folder[-1].path} that only"
                    f" {self._who} sees, and gone when it ends"
                )
                return
            met, last = folder, folder[-1]
        writes = file.use != named.READ
        if last.hidden:
            if os.path.exists(last.path) or file.use in (named.MAKE, named.BACK):
                self._refuse(file, self._not_seen(file, last))
        elif not _is_there(last):
            if file.use == named.BACK and _is_folder_there(last.host):
                self._refuse(file, "which does not exist; expected a file, or a directory such as /dev/shm")
        elif writes and last.read_only and not file.writer_is_other:
            self._refuse(file, self._not_writable(file, last, is_new=is_new))
        elif not may_use_device(self._unit, last.host, writes=writes):
            self._refuse(file, self._not_usable(file))
        elif last.host and not self._is_handed_over(last):
            self._ask(file, met)
        if not last.hidden and last.host not in ("", os.path.realpath(file.path)) and file.use != named.MAKE:
            self.notes.append(
                f"not checked: what is in {_shown(file.path)}, which {file.what} names: {self._who} has {last.host} there"
                " (BindPaths= in its unit), and it was looked for outside of the unit"
            )

    def _ask(self, file: NamedFile, met: Sequence[Sight]) -> None:
        """The way there, link by link and mount by mount, and then the file."""
        asked = [Question(f"{folder}/.", os.F_OK, base) for sight in met for folder, base in sight.parents]
        asked += [Question(sight.host, os.F_OK, sight.base) for sight in met[:-1] if sight.host]
        last = met[-1]
        asked.append(Question(last.host, _mode(file, last.host), last.base))
        self._asked += [(file, question) for question in asked]

    def _is_handed_over(self, sight: Sight) -> bool:
        """Whether systemd gives it to the account before the VM starts, with the whole directory that is another's now."""
        for folder in self._view.made:
            if self._account is not None and is_below(sight.host, os.path.realpath(folder)):
                try:
                    status = os.stat(folder)
                except OSError:  # those of a dynamic user are in one that is root's: who is not root asks no account, either
                    return False
                return (status.st_uid, status.st_gid) != (self._account.uid, self._account.gid)
        return False

    def _refuse(self, file: NamedFile, fault: str) -> None:
        if file.what == named.CONFIGURATION:
            self.mistakes.append(ConfigError(f"{file.path}: {file.what} is a file {fault}"))
            return
        try:
            with self._config.naming():
                raise ConfigError(f"{file.what} is {_shown(file.path)}, {fault}")
        except ConfigError as error:
            self.mistakes.append(error)

    def _not_seen(self, file: NamedFile, sight: Sight) -> str:
        place = sight.path
        through = "" if place in (file.path, os.path.dirname(file.path)) else f"which leads to {_shown(place)}, "
        fault = f"{through}which {self._who} cannot see ({sight.hidden} in its unit)"
        way, access = ("BindReadOnlyPaths", "r") if file.use == named.READ else ("BindPaths", "rw")
        way = f"{way}={place}"
        if sight.hidden.startswith("PrivateDevices="):
            return f"{fault}; give the unit a drop-in with {way} and DeviceAllow={place} {access}"
        if sight.hidden.startswith(_HOME):  # below what is inaccessible nothing can be mounted
            way = f"{_HOME}tmpfs and {way}"
        return f"{fault}; put it into {self._own_folder(file)}, or give the unit a drop-in with {way}"

    def _not_writable(self, file: NamedFile, sight: Sight, *, is_new: bool) -> str:
        where, place = ("in a directory ", os.path.dirname(file.path)) if is_new else ("", file.path)
        return (
            f"{where}which {self._who} can only read ({sight.read_only} in its unit); put it into {self._own_folder(file)}, or"
            f" give the unit a drop-in with ReadWritePaths={place}"
        )

    def _not_usable(self, file: NamedFile) -> str:
        access = "r" if file.use == named.READ else "rw"
        return (
            f"a device which {self._who} may not use (DevicePolicy={self._unit['DevicePolicy']} in its unit); give the unit"
            f" a drop-in with DeviceAllow={file.path} {access}"
        )

    def _own_folder(self, file: NamedFile) -> str:
        return f"/var/{'log' if file.use == named.MAKE else 'lib'}/vmservice/{self._config.name}"

    def _not_permitted(self, file: NamedFile, question: Question, refused: str) -> str:
        who = "your account" if self._account is None else f"the account {self._account.name} of {self._who}"
        rights = f"({shown_rights(refused)})"
        if refused != question.path:
            return f"in the directory {refused}, which is closed to {who} {rights}; open it, or use another place"
        if question.mode & os.X_OK:
            where = "" if refused == file.path else f"in {refused}, "
            return f"{where}a directory in which {who} may not make files {rights}; let it, or use another place"
        verb = {named.READ: "read", named.MAKE: "write"}.get(file.use, "read and write")
        through = "" if refused == file.path else f"which leads to {_shown(refused)}, "
        other = "use a copy that it may" if file.use == named.READ else "use another place"
        if file.what.startswith("credentials."):
            other = "use LoadCredential= in a drop-in of the unit instead, which systemd reads as root"
        return f"{through}which {who} may not {verb} {rights}; let it, or {other}"


def judge_files(config: Config, *, is_system: bool) -> Judge:
    """For the unit of a VM of the system; for any other with the eyes of whoever asks, and so within that unit: there they are
    the VM's own, and to work out what its sandbox does would count that twice. The configuration may have mistakes."""
    return judge_for_unit(config) if is_system and not _is_within(_unit_name(config)) else judge_for_us(config)


def judge_for_unit(config: Config) -> Judge:
    """For vm@NAME.service of the system instance, as it is configured on this host."""
    who = _unit_name(config)
    unit = read_unit(config.name)
    account = account_of(unit or {})
    why = _why_not_seen(unit)
    if unit is None or why:
        judge = Judge(config, who, {}, View(), None)
        judge.notes.append(f"not checked: what {who} sees of the files and may use, for {why}")
        return judge
    judge = Judge(config, who, unit, view_of_unit(unit), account)
    if account is None and not unit.get("DynamicUser"):
        judge.mistakes.append(ConfigError(f"{config.path}: {who} has {_shown_account(unit)}; one of them is not on this host"))
    why = "systemd makes it when the VM starts (DynamicUser=yes)" if unit.get("DynamicUser") else ""
    if not why and os.geteuid() != 0:
        why = "only root can find that out"
    if why:
        judge.notes.append(f"not checked: whether the account of {who} may use the files, for {why}")
    judge.judge(ask=account is not None and not why)
    judge.mistakes += _missing_credentials(config, unit)
    return judge


def judge_for_us(config: Config) -> Judge:
    """For a VM of the user who asks: it sees what that user sees. What is to be read has been opened before."""
    judge = Judge(config, "the VM", {}, View(), None)
    judge.judge(uses=(named.MAKE, named.BACK))
    return judge


def _unit_name(config: Config) -> str:
    return f"vm@{config.name}.service"


def _is_within(unit: str) -> bool:
    """Whether this process is one of the unit's, as what reloads it is."""
    try:
        with open(CONTROL_GROUP, encoding="utf-8", errors="replace") as file:
            return any(unit in line.rstrip("\n").split("/") for line in file)
    except OSError:
        return False


def _why_not_seen(unit: Mapping[str, Any] | None) -> str:
    if unit is None:
        return "systemd does not tell of that unit here"
    if unit.get("RootDirectory") or unit.get("RootImage"):
        return "it has a root directory of its own"
    return ""


def _shown_account(unit: Mapping[str, Any]) -> str:
    settings = [f"{key}={unit[key]}" for key in ("User", "Group") if unit.get(key)]
    return " ".join([*settings, *(f"SupplementaryGroups={name}" for name in unit.get("SupplementaryGroups", ()))])


def _missing_credentials(config: Config, unit: Mapping[str, Any]) -> list[ConfigError]:
    """systemd does not start a unit without them, unless there is SetCredential= for when they are not there."""
    spare = {name for setting in ("SetCredential", "SetCredentialEncrypted") for name, _ in unit.get(setting, ())}
    return [
        ConfigError(f"{config.path}: its unit has {setting}={name}:{path}, and that file does not exist")
        for setting in ("LoadCredential", "LoadCredentialEncrypted")
        for name, path in unit.get(setting, ())
        if path.startswith("/") and name not in spare and os.geteuid() == 0 and not os.path.exists(path)
    ]


def _is_there(sight: Sight) -> bool:
    """A directory of the service's own is; of what we may not look at nothing is known."""
    if sight.hidden or not sight.host:
        return not sight.hidden
    try:
        os.lstat(sight.host)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_folder_there(file: str) -> bool:
    """Whether the folder of `file` will be there when the VM starts, and `file` not, for the unit makes it not either."""
    folder = os.path.dirname(file)
    return (os.path.isdir(folder) or is_made_by_unit(folder)) and not is_made_by_unit(file)


def _mode(file: NamedFile, host: str) -> int:
    """Of access(2), for what is there in the end."""
    try:
        is_folder = stat.S_ISDIR(os.stat(host).st_mode)
    except OSError:
        is_folder = False
    if is_folder:
        return os.W_OK | os.X_OK if file.use in (named.MAKE, named.BACK) else os.R_OK
    return {named.READ: os.R_OK, named.MAKE: os.W_OK}.get(file.use, os.R_OK | os.W_OK)


def _shown(path: str) -> str:
    return quoted(path, PATH_SHOWN_MAX)
