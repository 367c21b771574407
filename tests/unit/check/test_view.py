"""What systemd's sandbox leaves of the host's files, worked out. tests/system/test_check_config.py asks systemd itself."""

from __future__ import annotations

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
    open_view, closed = View(), view_of_unit({"InaccessiblePaths": [f"{tmp_path}/closed"]})

    met = open_view.follow(f"{tmp_path}/link")
    places = [f"{tmp_path}/{name}" for name in ("link", "folder", "folder", "closed/image")]
    assert [sight.path for sight in met] == places
    last = closed.follow(f"{tmp_path}/link")[-1]
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
