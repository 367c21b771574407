"""A folder whose names are watched, also while it is not there."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmservice.errors import HostError
from vmservice.host.folder_watch import FolderWatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "above/folder"


@pytest.fixture
def watch(folder: Path) -> Iterator[FolderWatch]:
    watch = FolderWatch(str(folder), ".d")
    yield watch
    watch.close()


def has_news(watch: FolderWatch) -> bool:
    return bool(select.select([watch.fd], [], [], 0)[0])


def test_names_that_come_and_go(watch: FolderWatch, folder: Path) -> None:
    folder.mkdir(parents=True)
    assert watch.names() == []
    assert not has_news(watch)
    (folder / "a").touch()
    assert has_news(watch)
    assert watch.names() == ["a"]
    assert not has_news(watch)
    (folder / "a").write_text("x")
    assert not has_news(watch), "what is in a file is not asked for"
    (folder / "a").rename(folder / "b")
    assert has_news(watch)
    assert watch.names() == ["b"]
    (folder / "b").unlink()
    (folder / "sub").mkdir()
    assert has_news(watch)
    assert watch.names() == []


def test_a_folder_that_is_not_there_yet(watch: FolderWatch, folder: Path) -> None:
    assert watch.names() == []
    folder.parent.mkdir()
    assert has_news(watch)
    assert watch.names() == []
    folder.mkdir()
    assert has_news(watch)
    assert watch.names() == []
    (folder / "a").touch()
    assert has_news(watch)
    assert watch.names() == ["a"]


def test_a_folder_that_goes_or_is_replaced(watch: FolderWatch, folder: Path) -> None:
    folder.mkdir(parents=True)
    assert watch.names() == []
    folder.rename(folder.with_name("old"))
    assert has_news(watch)
    assert watch.names() == []
    (folder.with_name("old") / "a").touch()
    assert not has_news(watch) or watch.names() == []
    folder.with_name("old").rename(folder)
    assert has_news(watch)
    assert watch.names() == ["a"]
    (folder / "a").unlink()
    folder.rmdir()
    folder.parent.rmdir()
    assert has_news(watch)
    assert watch.names() == []
    folder.mkdir(parents=True)
    assert has_news(watch)


def test_subfolders(watch: FolderWatch, folder: Path) -> None:
    (folder / "other").mkdir(parents=True)
    assert watch.names() == []
    (folder / "a.d").mkdir()
    assert has_news(watch)
    assert watch.names() == []
    (folder / "other/x").touch()
    assert not has_news(watch)
    (folder / "a.d/x").touch()
    assert has_news(watch)
    assert watch.names() == ["a.d/x"]
    (folder / "a.d/x").unlink()
    (folder / "a.d").rename(folder / "a")
    assert has_news(watch)
    assert watch.names() == []
    assert not has_news(watch)


@contextlib.contextmanager
def bound_by_permissions(folder: Path) -> Iterator[None]:
    """As an account that may not read all; where that is not ours already it is another one, which has the way to `folder`."""
    if os.geteuid() != 0:
        yield
        return
    for place in folder.parents:
        if place.stat().st_uid == 0 and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_cannot_be_looked_into_hides_nothing_else(watch: FolderWatch, folder: Path) -> None:
    for name in ("a.d", "closed.d"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x").touch()
    for name in ("circle", "circle.d"):
        (folder / name).symlink_to(name)
    (folder / "closed.d").chmod(0)
    with bound_by_permissions(folder):
        assert sorted(watch.names()) == ["a.d/x", "circle"]
        assert sorted(watch.closed) == ["circle.d", "closed.d"]
    assert not has_news(watch)
    (folder / "closed.d").chmod(0o755)
    assert has_news(watch), "it may be read now"
    with bound_by_permissions(folder):
        assert sorted(watch.names()) == ["a.d/x", "circle", "closed.d/x"]
    assert watch.closed == ["circle.d"]


def test_a_closed_folder_that_is_opened(watch: FolderWatch, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a").touch()
    folder.chmod(0)
    with bound_by_permissions(folder), pytest.raises(HostError, match=r"above/folder: Permission denied"):
        watch.names()
    folder.chmod(0o755)
    assert has_news(watch)
    with bound_by_permissions(folder):
        assert watch.names() == ["a"]


def test_a_file_in_its_place(watch: FolderWatch, folder: Path) -> None:
    folder.parent.mkdir()
    folder.touch()
    assert watch.names() == []
    folder.unlink()
    folder.mkdir()
    assert has_news(watch)


def test_one_that_may_not_be_read(watch: FolderWatch, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)

    def refuse(_path: str) -> None:
        raise PermissionError(13, "")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(HostError, match=r"cannot read .*above/folder: Permission denied \(errno 13\)"):
        watch.names()
