"""What is installed beside Python: units, bus files, the man page, the package; and that names and versions agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support.package import debian_package

CHECKOUT = Path(__file__).parents[2]
VERSION = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]


def output_of(*command: str | Path, **environment: str) -> str:
    """Both streams of a command that must end with 0."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize(("manager", "folder"), [("--system", "units"), ("--user", "units/user")])
def test_systemd_understands_the_units(tmp_path: Path, manager: str, folder: str) -> None:
    """This machine's systemd, which may be the oldest that is supported; tests/system asks the container's. The programs are
    not installed here, so others stand for them."""
    places = []
    for unit in (
        f"{folder}/vm@.service",
        f"{folder}/vm-disk@.service",
        f"{folder}/vm-disk@.socket",
        f"{folder}/vm-passt@.service",
        f"{folder}/vm-passt@.socket",
        f"{folder}/vmservice-manager.service",
        "units/vm-tap@.service",
        "units/vm-console@.socket",
    ):
        text = (CHECKOUT / unit).read_text()
        assert unit.endswith(".socket") or "ExecStart=/usr/bin/vmservice " in text
        places.append(tmp_path / Path(unit).name)
        places[-1].write_text(
            re.sub(r"^(Exec\w+=[-+]*)/usr/(bin/vmservice|libexec/vmservice/\S+) ", r"\1/bin/true ", text, flags=re.MULTILINE)
        )
    said = output_of("systemd-analyze", manager, "verify", "--man=no", *places, XDG_RUNTIME_DIR=str(tmp_path))
    assert said == ""


def test_the_unit_has_no_stop_command() -> None:
    """All of it is done on SIGTERM: a stop command would also run when the guest has powered off by itself."""
    for unit in ("vm@.service", "vm-disk@.service", "vm-passt@.service"):
        for folder in ("units", "units/user"):
            assert not re.search(r"^ExecStop=", (CHECKOUT / folder / unit).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(path.name for path in (CHECKOUT / "dbus").glob("*.*")))
def test_the_bus_files_are_well_formed(name: str) -> None:
    """Well-formed, not valid: the document types lie on the network."""
    assert output_of("xmllint", "--noout", "--nonet", CHECKOUT / "dbus" / name) == ""


def test_the_catalog_has_an_entry_for_each_message() -> None:
    catalog = set(re.findall(r"^-- ([0-9a-f]{32})$", (CHECKOUT / "units/vmservice.catalog").read_text(), re.MULTILINE))
    code = set(re.findall(r'"([0-9a-f]{32})"', (CHECKOUT / "vmservice/service/message_ids.py").read_text()))
    assert catalog == code != set()


def test_the_versions_agree() -> None:
    changelog = (CHECKOUT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"vmservice ({VERSION}) ")
    assert f'__version__ = "{VERSION}"' in (CHECKOUT / "vmservice/__init__.py").read_text()


def test_pip_installs_every_package() -> None:
    """pyproject.toml names them one by one."""
    named = set(tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(file.parent.relative_to(CHECKOUT).parts) for file in (CHECKOUT / "vmservice").rglob("__init__.py")}
    assert named == there


def test_the_example_is_a_configuration() -> None:
    from vmservice.config.load import load_config

    config = load_config("demo", str(CHECKOUT / "packaging/examples/demo.toml"))
    assert config.cpus.max == 4


PAGES = sorted(CHECKOUT.glob("packaging/*.[1-8]"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_man_pages_have_no_fault(page: Path) -> None:
    said = output_of("man", "--warnings", "--local-file", "-Tutf8", "-Z", page, MANROFFSEQ="")
    assert not re.search(r"(:|mdoc) warning: ", said)


def test_the_package_has_every_man_page() -> None:
    named = (CHECKOUT / "packaging/debian/vmservice.manpages").read_text().split()
    assert sorted(named) == [str(page.relative_to(CHECKOUT)) for page in PAGES]


def test_lintian() -> None:
    """Neither an error nor a warning; the overrides say why."""
    allow_root = ("--allow-root",) if os.geteuid() == 0 else ()
    assert output_of("lintian", *allow_root, "--fail-on=error,warning", debian_package()) == ""
