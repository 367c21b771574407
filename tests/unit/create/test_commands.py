"""`vmservice delete`, `update-kernel` and `edit`, of a VM that `create` has made."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.disk_images import GRUB_CFG, KERNEL, disk, system
from unit.create.conftest import left

from vmservice.cli import main
from vmservice.create import places
from vmservice.host import run_lock

CHECKOUT = Path(__file__).parents[3]
GRUB_13 = GRUB_CFG.replace("6.12", "6.13").replace("quiet", "debug")
UPGRADED = system() | {"/boot/grub/grub.cfg": GRUB_13, "/boot/vmlinuz-6.13": KERNEL + b"new", "/boot/initrd.img-6.13": b"new"}
MADE = [f"state/vmservice/web/{name}" for name in ("created.json", "initrd.img", "root.raw", "vmlinuz")]


@pytest.fixture
def web(home: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Its state directory."""
    assert main(["create", "web", "--user", "--memory", "64M", "--network", "none", "--image", str(image)]) == 0
    capsys.readouterr()
    return home / "state/vmservice/web"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("".join(f"{word}\n" for word in words)))


@pytest.fixture
def running(web: Path) -> Iterator[int]:
    fd = run_lock.hold("web", user=True)
    yield fd
    os.close(fd)


def test_delete_asks_and_removes_what_create_made(
    home: Path, web: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(home)
    answer(monkeypatch, "")
    assert main(["delete", "web", "--user"]) == 1
    assert left(home) == before
    said = capsys.readouterr().err
    assert f"  {home}/config/vmservice/web.toml\n" in said
    assert f"  {web}/root.raw (" in said
    answer(monkeypatch, "y")
    assert main(["delete", "web", "--user"]) == 0
    assert left(home) == []
    assert not web.exists()


def test_delete_without_anybody_to_ask(home: Path, web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["delete", "--user", "web"]) == 1
    assert web.exists()
    assert main(["delete", "--user", "web", "--yes"]) == 0
    assert left(home) == []


def test_delete_of_several_goes_on_behind_an_error(home: Path, web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete", "--user", "nobody", "../web", "web", "--yes"]) == 64
    assert web.exists()
    capsys.readouterr()
    assert main(["delete", "--user", "nobody", "web", "web", "--yes"]) == 78
    assert left(home) == []
    said = capsys.readouterr().err
    assert said.startswith("vmservice: there is no VM nobody: ")
    assert said.count("\n") == 1


def test_delete_leaves_what_others_made(home: Path, web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (web / "data.img").write_text("mine")
    (web / "folder").mkdir()
    assert main(["delete", "--user", "web", "--yes"]) == 0
    assert left(home) == ["state/vmservice/web/data.img"]
    assert 'stays, for it has what create did not make: "data.img", "folder"' in capsys.readouterr().err


def test_delete_takes_nothing_in_the_list_for_more_than_a_name(
    home: Path, web: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list is in the VM's own folder, and it may be root who deletes."""
    (home / "mine").write_text("mine")
    (web / "created.json").write_text(
        '{"image": "x", "files": ["../../../mine", "/etc/passwd", "..", "", "a\\u001b[31m", "root.raw"]}'
    )
    (web / "a\x1b[31m").touch()
    (web / "vmlinuz").unlink()
    (web / "vmlinuz").symlink_to(home / "mine")
    assert main(["delete", "--user", "web", "--yes"]) == 0
    assert (home / "mine").read_text() == "mine"
    assert sorted(os.listdir(web)) == ["a\x1b[31m", "created.json", "initrd.img", "vmlinuz"]
    assert "\x1b" not in capsys.readouterr().err


def test_delete_of_what_create_did_not_make(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete", "--user", "web", "--yes"]) == 78
    assert "there is no VM web" in capsys.readouterr().err
    (home / "config/vmservice").mkdir()
    (home / "config/vmservice/web.toml").write_text("mine")
    assert main(["delete", "--user", "web", "--yes"]) == 78
    assert "web was not made by `vmservice create`" in capsys.readouterr().err
    assert left(home) == ["config/vmservice/web.toml"]


@pytest.mark.parametrize("command", ["delete", "update-kernel"])
def test_a_vm_that_runs_is_left_alone(
    home: Path, running: int, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(home)
    answer(monkeypatch, "y")
    assert main([command, "--user", "web"]) == 69
    assert "the VM web runs already" in capsys.readouterr().err
    assert left(home) == before


@pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
def test_a_unit_that_is_about_to_run_counts(
    home: Path, web: Path, state: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(places, "unit_word", lambda place, question: state)
    assert main(["delete", "--user", "web", "--yes"]) == 69
    assert f"web is {state}; stop it before you delete it: systemctl --user stop vm@web" in capsys.readouterr().err
    assert web.exists()


def test_a_new_kernel_is_taken_out(home: Path, web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk(tmp_path / "upgraded", UPGRADED).rename(web / "root.raw")
    assert main(["update-kernel", "--user", "web"]) == 0
    assert (web / "vmlinuz").read_bytes() == KERNEL + b"new"
    assert (web / "initrd.img").read_bytes() == b"new"
    said = capsys.readouterr()
    assert said.out == "web starts with /boot/vmlinuz-6.13 from now on (grub.cfg of /boot: Debian GNU/Linux)\n"
    assert "web.toml keeps its kernel.cmdline; of grub.cfg of /boot: Debian GNU/Linux it would be now" in said.err
    assert "ro debug" in said.err
    assert sorted(os.listdir(web)) == ["created.json", "initrd.img", "root.raw", "vmlinuz"]


def end(web: Path) -> str:
    """What the unit's last script tells the journal, as the VM's end has it run."""
    (web / "bin").mkdir(exist_ok=True)
    program = web / "bin/vmservice"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vmservice "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [CHECKOUT / "units/why-ended", "web"],
        env={**os.environ, "STATE_DIRECTORY": str(web), "PATH": f"{web}/bin:{os.environ['PATH']}"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    program.unlink()
    (web / "bin").rmdir()
    return done.stderr


def test_a_new_kernel_in_the_guest_is_said_once(home: Path, web: Path, tmp_path: Path) -> None:
    assert end(web) == ""
    disk(tmp_path / "upgraded", UPGRADED).rename(web / "root.raw")
    assert end(web) == (
        "<5>the guest of web would start with /boot/vmlinuz-6.13 now, and is started with /boot/vmlinuz-6.12, which was taken"
        " out of its disk before; vmservice update-kernel --user web takes the other one\n"
    )
    assert end(web) == ""
    assert main(["update-kernel", "--user", "web"]) == 0
    (web / "kernel.told").unlink()
    assert end(web) == "", "it is the VM's now"
    (web / "root.raw").write_bytes(b"")
    assert end(web) == "", "what cannot be read is no news of the VM's end"
    assert main(["delete", "--user", "web", "--yes"]) == 0
    assert left(home) == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"/usr/lib/os-release": "ID=x\n"}, "root.raw: its system has no kernel in /boot"),
        (UPGRADED | {"/boot/grub/grub.cfg": GRUB_13.replace("initrd ", "# ")}, "has no initramfs any more: remove initramfs ="),
    ],
)
def test_a_kernel_that_cannot_be_taken_out_leaves_the_old_one(
    home: Path, web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes | str], words: str
) -> None:
    disk(tmp_path / "other", files).rename(web / "root.raw")
    assert main(["update-kernel", "--user", "web"]) == 78
    assert words in capsys.readouterr().err
    assert (web / "vmlinuz").read_bytes() == KERNEL
    assert sorted(os.listdir(web)) == ["created.json", "initrd.img", "root.raw", "vmlinuz"]


def test_update_kernel_follows_no_link(home: Path, web: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is the VM's account's, and it may be root who updates."""
    (web / "root.raw").unlink()
    (web / "root.raw").symlink_to(image)
    assert main(["update-kernel", "--user", "web"]) == 71
    assert "root.raw: Too many levels of symbolic links" in capsys.readouterr().err


def test_update_kernel_of_another_kernel(home: Path, web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "config/vmservice/web.toml"
    config.write_text(config.read_text().replace(f"{web}/vmlinuz", "/boot/mine"))
    assert main(["update-kernel", "--user", "web"]) == 78
    assert f"kernel.path is /boot/mine; expected {web}/vmlinuz" in capsys.readouterr().err


def editor(folder: Path, monkeypatch: pytest.MonkeyPatch, *scripts: str) -> Path:
    """A program that does one of `scripts` each time, to the file $1; the path of a list of what it was given."""
    program = folder / "my editor"
    cases = "\n".join(f"{number}) {script} ;;" for number, script in enumerate(scripts, 1))
    program.write_text(f'#!/bin/sh\necho "$1" >> "{folder}/edited"\ncase $(wc -l < "{folder}/edited") in\n{cases}\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("VISUAL", f"'{program}'")
    return folder / "edited"


def test_edit_puts_back_what_is_right(
    home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = home / "config/vmservice/web.toml"
    editor(tmp_path, monkeypatch, 'sed -i s/64M/96M/ "$1"')
    assert main(["edit", "--user", "web"]) == 0
    assert 'size = "96M"' in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert f"{config} is changed" in capsys.readouterr().err
    assert os.listdir(config.parent) == ["web.toml"]


def test_edit_again_until_it_is_right(
    home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = home / "config/vmservice/web.toml"
    edited = editor(tmp_path, monkeypatch, 'sed -i s/64M/64X/ "$1"', 'sed -i s/64X/80M/ "$1"')
    answer(monkeypatch, "y")
    assert main(["edit", "--user", "web"]) == 0
    assert 'size = "80M"' in config.read_text()
    assert len(edited.read_text().splitlines()) == 2
    assert f'{config}: memory.size is "64X"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        ('sed -i s/64M/64X/ "$1"', 78, "web.toml is as it was"),
        ("exit 3", 71, "my editor has ended with 3; nothing is changed"),
        (":", 0, "web.toml is as it was"),
    ],
)
def test_edit_that_comes_to_nothing(
    home: Path,
    web: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    status: int,
    words: str,
) -> None:
    config = home / "config/vmservice/web.toml"
    before = config.read_bytes()
    editor(tmp_path, monkeypatch, script)
    answer(monkeypatch, "")
    assert main(["edit", "--user", "web"]) == status
    assert words in capsys.readouterr().err
    assert config.read_bytes() == before
    assert os.listdir(config.parent) == ["web.toml"]


def test_ctrl_c_is_a_key_of_the_editor(home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home / "config/vmservice/web.toml"
    editor(tmp_path, monkeypatch, 'kill -INT $PPID; sed -i s/64M/72M/ "$1"')
    assert main(["edit", "--user", "web"]) == 0
    assert 'size = "72M"' in config.read_text()


def test_edit_that_is_ended_changes_nothing(home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home / "config/vmservice/web.toml"
    before = config.read_bytes()
    editor(tmp_path, monkeypatch, 'sed -i s/64M/72M/ "$1"; kill -TERM $PPID; exec sleep 60')
    assert main(["edit", "--user", "web"]) == 130
    assert config.read_bytes() == before
    assert os.listdir(config.parent) == ["web.toml"]


def test_edit_offers_a_reload(
    home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "systemctl.lines"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {lines}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(places, "unit_word", lambda place, question: "active")
    editor(tmp_path, monkeypatch, 'sed -i s/64M/65M/ "$1"', 'sed -i s/65M/66M/ "$1"')
    answer(monkeypatch, "n", "y")
    assert main(["edit", "--user", "web"]) == 0
    assert not lines.exists()
    assert main(["edit", "--user", "web"]) == 0
    assert lines.read_text() == "--user reload vm@web\n"
    assert "web runs. Reload it now?" in capsys.readouterr().err


def test_edit_of_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--user", "db"]) == 78
    assert "there is no configuration for the VM db" in capsys.readouterr().err


def test_edit_does_not_undo_what_another_has_done_meanwhile(
    home: Path, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = home / "config/vmservice/web.toml"
    editor(tmp_path, monkeypatch, f'sed -i s/64M/96M/ "$1"; echo "# another" >> "{config}"')
    assert main(["edit", "--user", "web"]) == 78
    assert "has been changed by somebody else meanwhile" in capsys.readouterr().err
    assert config.read_text().endswith("# another\n")
    assert os.listdir(config.parent) == ["web.toml"]


def test_without_an_editor(home: Path, web: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "no-such-editor -w")
    assert main(["edit", "--user", "web"]) == 69
    assert "the editor no-such-editor -w is not installed; EDITOR names another one" in capsys.readouterr().err


def test_the_made_list_is_as_it_was_written(web: Path) -> None:
    made = places.read_made(str(web))
    assert made is not None
    assert sorted(made.files) == sorted([*os.listdir(web), "kernel.told"])
    assert made.kernel == "/boot/vmlinuz-6.12"
    (web / "created.json").write_text("[]")
    with pytest.raises(Exception, match="is not what `vmservice create` wrote"):
        places.read_made(str(web))
