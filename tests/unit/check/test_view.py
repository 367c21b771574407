"""What systemd's sandbox leaves of the host's files, worked out. tests/system/test_check_config.py asks systemd itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmservice.check.view import View, view_of_unit

# The settings of units/vm@.service, as the bus has them.
UNIT: dict[str, Any] = {
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": True,
    "PrivateDevices": True,
    "TemporaryFileSystem": [["/var/lib/vmservice", "ro"], ["/run/vmservice", "ro"]],
    "BindPaths": [["/var/lib/vmservice/web", "/var/lib/vmservice/web", False, 16384]],
    "StateDirectory": ["vmservice/web"],
    "LogsDirectory": ["vmservice/web"],
}


def unit(**more: Any) -> View:
    return view_of_unit({**UNIT, **more})


@pytest.mark.parametrize(
    ("path", "hidden", "read_only"),
    [
        ("/srv/a", "", "ProtectSystem=strict"),
        ("/root/a", "ProtectHome=yes", ""),
        ("/home/ann/a", "ProtectHome=yes", ""),
        ("/homes/a", "", "ProtectSystem=strict"),
        ("/tmp", "", ""),
        ("/tmp/a", "PrivateTmp=yes", ""),
        ("/dev/sda", "PrivateDevices=yes", "PrivateDevices=yes"),
        ("/dev/shm", "", ""),
        ("/dev/shm/a", "", ""),
        ("/var/lib/vmservice", "", "TemporaryFileSystem=/var/lib/vmservice"),
        ("/var/lib/vmservice/db/a", "TemporaryFileSystem=/var/lib/vmservice", "TemporaryFileSystem=/var/lib/vmservice"),
        ("/var/lib/vmservice/web/a", "", ""),
        ("/var/log/vmservice/web", "", ""),
        ("/var/log/vmservice", "", "ProtectSystem=strict"),
    ],
)
def test_the_units_own_settings(path: str, hidden: str, read_only: str) -> None:
    sight = unit().look(path)
    assert (sight.hidden, sight.read_only) == (hidden, read_only)


@pytest.mark.parametrize(
    ("settings", "path", "hidden", "read_only"),
    [
        ({"ReadWritePaths": ["-/srv"]}, "/srv/a", "", ""),
        ({"ReadWritePaths": ["/srv"], "ReadOnlyPaths": ["/srv/a"]}, "/srv/a/b", "", "ReadOnlyPaths=/srv/a"),
        ({"ReadWritePaths": ["/srv"], "ReadOnlyPaths": ["/srv"]}, "/srv", "", "ReadOnlyPaths=/srv"),
        ({"InaccessiblePaths": ["/srv"], "ReadWritePaths": ["/srv/a"]}, "/srv/a", "InaccessiblePaths=/srv", ""),
        ({"BindPaths": [["/home/ann", "/home/ann", False, 0]]}, "/home/ann/a", "ProtectHome=yes", ""),
        ({"ProtectHome": "tmpfs", "BindPaths": [["/home/ann", "/home/ann", False, 0]]}, "/home/ann/a", "", ""),
        ({"ProtectHome": "tmpfs"}, "/home/ann/a", "ProtectHome=tmpfs", "ProtectHome=tmpfs"),
        ({"ProtectHome": "read-only"}, "/home/ann/a", "", "ProtectHome=read-only"),
        ({"ProtectHome": "no"}, "/home/ann/a", "", ""),
        ({"BindReadOnlyPaths": [["/tmp/a", "/tmp/a", False, 0]]}, "/tmp/a", "", "BindReadOnlyPaths=/tmp/a"),
        ({"BindPaths": [["/nosuch", "/srv", True, 0]]}, "/srv/a", "", "ProtectSystem=strict"),
        ({"ProtectSystem": "full"}, "/etc/a", "", "ProtectSystem=full"),
        ({"ProtectSystem": "yes"}, "/etc/a", "", ""),
        ({"ProtectSystem": "no"}, "/usr/a", "", ""),
        ({"ProtectSystem": "no", "TemporaryFileSystem": [["/srv", ""]]}, "/srv", "", "TemporaryFileSystem=/srv"),
        ({"ProtectSystem": "no", "TemporaryFileSystem": [["/srv", "mode=1777"]]}, "/srv", "", ""),
    ],
)
def test_drop_ins(settings: dict[str, Any], path: str, hidden: str, read_only: str) -> None:
    sight = unit(**settings).look(path)
    assert (sight.hidden, sight.read_only) == (hidden, read_only)


def test_what_is_mounted_from_elsewhere(tmp_path: Path) -> None:
    sight = view_of_unit({"BindPaths": [[str(tmp_path), "/srv/images", False, 0]]}).look("/srv/images/a/b")
    assert (sight.host, sight.base, sight.parents) == (f"{tmp_path}/a/b", str(tmp_path), [("/srv", "/")])
    nested = {"BindPaths": [[str(tmp_path), "/srv", False, 0], ["/usr", "/srv/a/usr", False, 0]]}
    assert view_of_unit(nested).look("/srv/a/usr/b").parents == [("/", "/"), (f"{tmp_path}/a", str(tmp_path))]
    assert unit().look("/var/lib/vmservice/web/a").parents == [("/var/lib", "/")], "what is between is empty and open"
    assert unit(BindPaths=[["/usr", "/tmp/a/b", False, 0]]).look("/tmp/a").hidden == "", "it is made for what is in it"


def test_links_are_followed_as_the_service_sees_them(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/image").touch()
    (tmp_path / "folder").symlink_to("closed")
    (tmp_path / "link").symlink_to(f"{tmp_path}/./folder/../folder/image")
    (tmp_path / "short").symlink_to("folder/image")
    open_view, closed = View(), view_of_unit({"InaccessiblePaths": [f"{tmp_path}/closed"]})

    met = open_view.follow(f"{tmp_path}/link")
    places = [f"{tmp_path}/{name}" for name in ("link", "folder", "folder", "closed/image")]
    assert [sight.path for sight in met] == places
    last = closed.follow(f"{tmp_path}/short")[-1]
    assert (last.path, last.hidden) == (places[-1], f"InaccessiblePaths={tmp_path}/closed")
    assert closed.look(places[0]).hidden == ""


def test_a_link_that_leads_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert View().follow(f"{tmp_path}/loop")[-1].path == f"{tmp_path}/loop"


def test_a_setting_for_a_link_is_for_what_it_leads_to(tmp_path: Path) -> None:
    """As /home may be one."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    view = view_of_unit({"InaccessiblePaths": [f"{tmp_path}/link"]})
    assert view.look(f"{tmp_path}/real/a").hidden == f"InaccessiblePaths={tmp_path}/link"


DEVICE = "/dev/vg0/web"
NODE = "/dev/dm-3"


@pytest.fixture
def linked_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As LVM and udev leave a logical volume on the host."""
    links, readlink, realpath = {DEVICE: "../dm-3"}, os.readlink, os.path.realpath
    monkeypatch.setattr(os, "readlink", lambda path: links.get(path) or readlink(path))
    monkeypatch.setattr(os.path, "realpath", lambda path: NODE if path == DEVICE else realpath(path))


@pytest.mark.usefixtures("linked_device")
def test_a_device_that_udev_has_linked() -> None:
    """In a /dev of the service's own it is no link: what is mounted there is the node."""
    binds: dict[str, Any] = {"BindPaths": [[DEVICE, DEVICE, False, 0]]}
    (sight,) = unit(**binds).follow(DEVICE)
    assert (sight.path, sight.hidden, sight.read_only, sight.host) == (DEVICE, "", "", NODE)
    assert unit(**binds).look(NODE).hidden == "PrivateDevices=yes"
    assert [sight.path for sight in unit(**binds, PrivateDevices=False).follow(DEVICE)] == [DEVICE, NODE]


@pytest.mark.usefixtures("linked_device")
def test_a_device_that_is_hidden_is_told_by_the_name_that_would_show_it() -> None:
    (sight,) = unit().follow(DEVICE)
    assert (sight.path, sight.hidden) == (DEVICE, "PrivateDevices=yes")


def test_a_mount_point_that_is_a_link_only_on_the_host(tmp_path: Path) -> None:
    """As a VM's folder may lead to a larger disk: the directory that holds the link is mounted over first."""
    (tmp_path / "large").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/web").symlink_to("../large")
    lib, web = f"{tmp_path}/lib", f"{tmp_path}/lib/web"
    view = view_of_unit({"TemporaryFileSystem": [[lib, "ro"]], "BindPaths": [[web, web, False, 0]]})
    (sight,) = view.follow(f"{web}/image")
    assert (sight.path, sight.hidden, sight.host) == (f"{web}/image", "", f"{tmp_path}/large/image")
    assert view.look(f"{tmp_path}/large/image").parents == [], "nothing is mounted there"


def test_what_a_step_leads_into_is_mounted_before_the_next_step(tmp_path: Path) -> None:
    """The link leads below a mount that comes later in the order of the paths, and hides a second link."""
    for name in ("a", "b", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/link").symlink_to("../b/next")
    (tmp_path / "b/next").symlink_to("../other")
    binds = [["/usr", f"{tmp_path}/a/link", False, 0]]
    view = view_of_unit({"TemporaryFileSystem": [[f"{tmp_path}/b", ""]], "BindPaths": binds})
    assert view.look(f"{tmp_path}/b/next/share").host == "/usr/share"
    assert view.look(f"{tmp_path}/other").host == f"{tmp_path}/other"


def test_a_mount_point_that_leads_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    view = view_of_unit({"ReadOnlyPaths": [f"{tmp_path}/loop"]})
    assert view.look(f"{tmp_path}/loop").read_only == f"ReadOnlyPaths={tmp_path}/loop"
