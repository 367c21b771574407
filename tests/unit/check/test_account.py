"""What another account may use is asked of the kernel; and which account a unit has."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from vmservice.check.account import Account, Question, account_of, refusals, shown_rights
from vmservice.errors import HostError

NOBODY = Account("made-up", 65533, 65533, (65532,))

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Open to all, whatever the folders above it are."""
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    return open_folder


def refused(account: Account | None, path: Path, mode: int, base: Path) -> str | None:
    (answer,) = refusals(account, [Question(str(path), mode, str(base))])
    return answer


@as_root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "asked", "is_right"),
    [
        (0o600, 0, 0, os.R_OK, False),
        (0o604, 0, 0, os.R_OK, True),
        (0o604, 0, 0, os.R_OK | os.W_OK, False),
        (0o600, NOBODY.uid, 0, os.R_OK | os.W_OK, True),
        (0o640, 0, NOBODY.gid, os.R_OK, True),
        (0o640, 0, NOBODY.groups[0], os.R_OK, True),
        (0o644, 0, 0, os.F_OK, True),
    ],
)
def test_a_file(folder: Path, mode: int, owner: int, group: int, asked: int, is_right: bool) -> None:
    file = folder / "image"
    file.touch()
    file.chmod(mode)
    os.chown(file, owner, group)
    assert refused(NOBODY, file, asked, folder) == (None if is_right else str(file))


@as_root
def test_a_directory_on_the_way_is_named_unless_it_is_above_the_base(folder: Path) -> None:
    closed = folder / "closed"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0o700)
    file = closed / "deep/image"
    file.touch(0o644)
    assert refused(NOBODY, file, os.R_OK, folder) == str(closed)
    assert refused(NOBODY, file, os.R_OK, closed / "deep") is None
    assert refused(NOBODY, file, os.R_OK, file) is None, "a file may be mounted, too"


@as_root
def test_who_is_root_has_no_privilege_left(folder: Path) -> None:
    """As with CapabilityBoundingSet= in the unit."""
    file = folder / "image"
    file.touch()
    file.chmod(0o600)
    os.chown(file, 1, 1)
    assert refused(Account("root", 0, 0), file, os.R_OK, folder) == str(file)
    assert refused(None, file, os.R_OK, folder) is None, "we are as we were"


def test_we_ourselves_are_asked_directly(folder: Path) -> None:
    assert refused(None, folder, os.W_OK | os.X_OK, folder) is None
    assert refused(None, folder / "none", os.F_OK, folder) == str(folder / "none")


def test_nobody_else_is_asked_without_root() -> None:
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(4242, 4242, 4242)
            refused(NOBODY, Path("/usr"), os.R_OK, Path("/"))
        except HostError as error:
            os._exit(0 if "cannot find out what the account made-up may use" in str(error) else 3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_account_of_a_unit() -> None:
    root, group = pwd.getpwuid(0), grp.getgrgid(1)
    found = account_of({"User": "root", "Group": group.gr_name, "SupplementaryGroups": ["4242"]})
    assert found is not None
    assert (found.name, found.uid, found.gid) == (root.pw_name, 0, 1)
    assert {1, 4242} <= set(found.groups)
    by_number = account_of({"User": "0", "Group": ""})
    assert by_number is not None
    assert (by_number.name, by_number.gid) == (root.pw_name, root.pw_gid)
    unnamed = account_of({})
    assert unnamed is not None
    assert unnamed.uid == 0
    for missing in ({"User": "no-such-account"}, {"Group": "no-such-group"}, {"SupplementaryGroups": ["no-such-group"]}):
        assert account_of(missing) is None


def test_rights_are_shown_with_names(folder: Path) -> None:
    folder.chmod(0o750)
    status = os.stat(folder)
    names = f"{pwd.getpwuid(status.st_uid).pw_name}:{grp.getgrgid(status.st_gid).gr_name}"
    assert shown_rights(str(folder)) == f"mode 0750, of {names}"
    assert shown_rights(str(folder / "none")) == ""
