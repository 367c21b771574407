"""NAME.toml.d and common.d: what counts of several files, whose fault a mistake is, and what a VM without them pays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmservice.config import files, names
from vmservice.config.load import Config, check_files, file_errors, load_config, read_config
from vmservice.config.sections.disk import DiskDevice
from vmservice.errors import ConfigError

CHECKOUT = Path(__file__).parents[3]
KERNEL = '[kernel]\npath = "/boot/vmlinuz"\n'
DISK = '[[disk]]\nname = "root"\nformat = "raw"\n'


@pytest.fixture(autouse=True)
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "vendor"
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(files, "VENDOR_FOLDER", str(folder))
    return folder


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def load(folder: Path) -> Config:
    return load_config("demo", f"{folder}/demo.toml")


def test_of_each_key_the_last_file_counts(tmp_path: Path, vendor: Path) -> None:
    read = [
        write(vendor / "10-a.toml", '[memory]\nsize = "64M"\nprefault = true\n[cpus]\nboot = 1\nmax = 9\n'),
        write(tmp_path / "common.d/20-b.toml", '[memory]\nsize = "128M"\n[cpus]\nboot = 2\n'),
        write(tmp_path / "demo.toml", f"{KERNEL}[cpus]\nboot = 3\n"),
        write(tmp_path / "demo.toml.d/10-x.toml", "[cpus]\nboot = 4\n[service]\nshutdown_timeout = 1\n"),
        write(tmp_path / "demo.toml.d/9-y.toml", "[cpus]\nboot = 5\n"),
    ]
    config = load(tmp_path)
    assert (config.cpus.boot, config.cpus.max) == (5, 9)
    assert (config.memory.size_bytes, config.memory.prefault) == (128 << 20, True)
    assert config.service.shutdown_timeout_sec == 1
    assert config.read_from == tuple(read), "not in the order in which they count"


def test_a_file_of_common_d_takes_the_place_of_the_vendors(tmp_path: Path, vendor: Path) -> None:
    write(vendor / "10-a.toml", "[cpus]\nmax = 9\n")
    write(vendor / "30-c.toml", "[cpus]\nboot = 3\n")
    write(tmp_path / "common.d/10-a.toml", "")
    write(tmp_path / "common.d/20-b.toml", "[cpus]\nboot = 2\n")
    write(tmp_path / "demo.toml", KERNEL)
    config = load(tmp_path)
    assert (config.cpus.boot, config.cpus.max) == (3, 3)
    assert [os.path.basename(file) for file in config.read_from] == ["10-a.toml", "20-b.toml", "30-c.toml", "demo.toml"]


def test_entries_of_one_name_are_one_and_others_are_added(tmp_path: Path) -> None:
    write(tmp_path / "common.d/disk.toml", f"{DISK}readonly = true\ncache = 'direct'\n")
    write(
        tmp_path / "demo.toml",
        f'{KERNEL}[[disk]]\nname = "data"\nformat = "raw"\npath = "d"\n[[disk]]\nname = "root"\npath = "r"\n',
    )
    write(
        tmp_path / "demo.toml.d/a.toml", '[[disk]]\nname = "root"\nreadonly = false\n[[disk]]\nformat = "raw"\npath = "more"\n'
    )
    disks = [one for one in load(tmp_path).devices if isinstance(one, DiskDevice)]
    assert [(disk.name, os.path.basename(disk.path), disk.readonly, disk.is_direct) for disk in disks] == [
        ("root", "r", False, True),
        ("data", "d", False, False),
        ("disk2", "more", False, False),
    ]


def test_the_index_is_the_name_of_an_entry_without_one(tmp_path: Path) -> None:
    write(tmp_path / "demo.toml", f'{KERNEL}[[disk]]\nformat = "raw"\npath = "d"\n')
    write(tmp_path / "demo.toml.d/a.toml", '[[disk]]\nname = "disk0"\nreadonly = true\n')
    disks = [one for one in load(tmp_path).devices if isinstance(one, DiskDevice)]
    assert [(disk.name, disk.readonly) for disk in disks] == [("disk0", True)]


def test_one_name_twice_in_a_file_is_a_mistake_as_ever(tmp_path: Path) -> None:
    write(tmp_path / "demo.toml", KERNEL)
    write(tmp_path / "demo.toml.d/a.toml", 2 * f'{DISK}path = "x"\n')
    with pytest.raises(
        ConfigError, match=r'a\.toml: two \[\[disk\]\] are called "root"; expected a name of its own in disk\[1\]\.name'
    ):
        load(tmp_path)


def test_a_vm_may_be_its_drop_ins_alone_or_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "common.d/all.toml", KERNEL)
    with pytest.raises(ConfigError, match=r"there is no configuration for the VM demo: .*/demo\.toml does not exist"):
        load(tmp_path)
    (tmp_path / "demo.toml.d").mkdir()
    write(tmp_path / "demo.toml.d/.hidden.toml", "boot = ")
    write(tmp_path / "demo.toml.d/README", "no TOML")
    with pytest.raises(ConfigError, match="there is no configuration for the VM demo"):
        load(tmp_path)
    write(tmp_path / "demo.toml.d/a.toml", "[cpus]\nboot = 2\n")
    assert load(tmp_path).cpus.boot == 2
    (tmp_path / "demo.toml.d/a.toml").unlink()
    write(tmp_path / "demo.toml", "")
    assert load(tmp_path).cpus.boot == 1


def test_each_sentence_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    common = write(tmp_path / "common.d/all.toml", '[memory]\nsize = "64MiB"\n[[disk]]\nname = "root"\ncache = "none"\n')
    own = write(tmp_path / "demo.toml", '[kernel]\npath = "/boot/vmlinuz"\n[cpus]\nmax = 2\n[[port]]\n[[port]]\nname = "p"\n')
    drop_in = write(
        tmp_path / "demo.toml.d/a.toml",
        '[cpus]\nboot = 3\nmax_ = 1\n[[port]]\nname = "q"\nmode = "file"\n[[disk]]\nname = "root"\nformat = "vmdk"\n'
        "[service]\nready = 1\n",
    )
    assert [str(error) for error in read_config("demo", own)[1]] == [
        f"{drop_in}: cpus.max_ is not a known key; did you mean max?",
        f"{drop_in}: cpus.boot is 3; expected at most cpus.max, which is 2",
        f'{common}: memory.size is "64MiB"; expected "64M", a whole number with K, M, G or T',
        f'{drop_in}: service.ready is 1; expected "vmm" or "guest"',
        f"{own}: port[0].name is missing; expected 1 to 64 of A-Z a-z 0-9 _ . - that begin with a letter or digit",
        f'{drop_in}: port[0].path is missing; mode "file" needs the file that the console is written to',
        f'{drop_in}: disk[0].format is "vmdk"; expected "raw" or "qcow2"',
        f'{common}: disk[0].cache is "none"; expected "writeback" or "direct"',
        f"{common}: disk[0].path is missing; expected the path of a file",
    ]


def test_a_missing_file_is_told_with_the_file_that_names_it(tmp_path: Path) -> None:
    common = write(tmp_path / "common.d/all.toml", KERNEL.replace("/boot/vmlinuz", "k") + DISK)
    own = write(tmp_path / "demo.toml", '[[disk]]\nname = "root"\npath = "r"\n[cloud-init]\n')
    drop_in = write(tmp_path / "demo.toml.d/a.toml", '[cloud-init]\nuser_data = "u"\n[credentials]\n"a.b" = { file = "c" }\n')
    with pytest.raises(ConfigError) as caught:
        check_files(load(tmp_path))
    assert [str(error) for error in caught.value.errors] == [  # type: ignore[attr-defined]
        f'{common}: kernel.path is "{tmp_path}/k", which does not exist',
        f'{drop_in}: credentials."a.b".file is "{tmp_path}/c", which does not exist',
        f'{own}: disk root: path is "{tmp_path}/r", which does not exist',
        f'{drop_in}: cloud-init.user_data is "{tmp_path}/u", which does not exist',
    ]


def test_a_credential_with_other_letters_in_its_name_is_no_array_and_found(tmp_path: Path) -> None:
    own = write(tmp_path / "demo.toml", f'{KERNEL}[credentials]\n"a[b]" = "x"\n"c[0]" = {{ file = "c" }}\n')
    drop_in = write(tmp_path / "demo.toml.d/a.toml", '[credentials]\n"d[" = { file = "d" }\n"g h" = { file = "g" }\n')
    config = load(tmp_path)
    assert [one.name for one in config.credentials] == ["a[b]", "c[0]", "d[", "g h"]
    assert [str(error) for error in file_errors(config) if "credentials" in str(error)] == [
        f'{own}: credentials."c[0]".file is "{tmp_path}/c", which does not exist',
        f'{drop_in}: credentials."d[".file is "{tmp_path}/d", which does not exist',
        f'{drop_in}: credentials."g h".file is "{tmp_path}/g", which does not exist',
    ]


@pytest.mark.parametrize("wrong", ["toml", "directory", "dangling", "file", "closed"])
def test_a_drop_in_that_cannot_be_read_is_an_error(tmp_path: Path, wrong: str) -> None:
    write(tmp_path / "demo.toml", KERNEL)
    folder = tmp_path / "demo.toml.d"
    drop_in = folder / "a.toml"
    if wrong != "file":
        folder.mkdir()
    if wrong == "toml":
        drop_in.write_text("[cpus\n")
        said = f"the configuration {drop_in} is not valid TOML"
    elif wrong == "directory":
        drop_in.mkdir()
        said = f"the configuration {drop_in} is a directory; it must be a regular file"
    elif wrong == "dangling":
        drop_in.symlink_to("nowhere")
        said = f"the configuration {drop_in} does not exist"
    elif wrong == "file":
        folder.touch()
        said = f"{folder} is not a directory; it is where drop-ins are looked for"
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can become another account")
        folder.chmod(0)
        said = f"{folder} cannot be read by the account nobody: Permission denied"
        for place in (tmp_path, *tmp_path.parents):
            if place.stat().st_uid == 0 and place != Path("/"):
                place.chmod(place.stat().st_mode | 0o011)
        (tmp_path / "demo.toml").chmod(0o644)
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path)
    finally:
        if wrong == "closed":
            os.seteuid(0)
    assert str(caught.value).startswith(said)


def test_relative_paths_start_at_the_vms_folder_whatever_file_has_them(tmp_path: Path, vendor: Path) -> None:
    write(vendor / "a.toml", '[kernel]\npath = "k"\n')
    write(tmp_path / "demo.toml", "")
    write(tmp_path / "demo.toml.d/a.toml", '[kernel]\ninitramfs = "i"\n')
    kernel = load(tmp_path).kernel
    assert kernel is not None
    assert (kernel.path, kernel.initramfs) == (f"{tmp_path}/k", f"{tmp_path}/i")


def test_a_file_elsewhere_is_read_alone(tmp_path: Path, vendor: Path) -> None:
    """Where anybody may put files, as in /tmp, they are not for root to read."""
    own = write(tmp_path / "elsewhere/demo.toml", KERNEL)
    for other in ("elsewhere/demo.toml.d/a.toml", "elsewhere/common.d/a.toml", "vendor/a.toml"):
        write(tmp_path / other, "[cpus]\nboot = 2\n")
    config = load_config("demo", own)
    assert (config.read_from, config.cpus.boot) == ((own,), 1)
    os.unlink(own)
    with pytest.raises(ConfigError, match=r"there is no configuration for the VM demo: .*/demo\.toml does not exist"):
        load_config("demo", own)


def test_a_draft_is_read_in_place_of_the_vms_file(tmp_path: Path) -> None:
    own = write(tmp_path / "demo.toml", KERNEL)
    write(tmp_path / "demo.toml.d/a.toml", "[cpus]\nmax = 2\n")
    draft = write(tmp_path / ".draft", f"{KERNEL}[cpus]\nboot = 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config("demo", own, draft)
    assert str(caught.value) == f"{own}: cpus.boot is 3; expected at most cpus.max, which is 2"


ASK = """\
import os, sys
sys.path.insert(0, {checkout!r})
import vmservice.cli, vmservice.service.main, vmservice.vm.builder
from vmservice.config.load import load_config
asked = []
sys.addaudithook(lambda event, words: asked.append(f"{{event}} {{words[0]}}") if event in ("open", "os.listdir") else None)
load_config("demo", {config!r})
print(*asked, sep="\\n")
print(*sys.modules)
"""


def test_a_vm_without_drop_ins_pays_three_looks_and_no_import(tmp_path: Path) -> None:
    config = write(tmp_path / "vmservice/demo.toml", KERNEL)
    program = ASK.format(checkout=str(CHECKOUT), config=config)
    command = [sys.executable, "-I", "-S", "-c", program]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    *asked, loaded = said.splitlines()
    ours = [
        line
        for line in asked
        if not line.endswith((".py", ".pyc")) and "__pycache__" not in line and "/vmservice/config" not in line
    ]
    looks = [
        f"os.listdir {folder}" for folder in (f"{config}.d", "/usr/share/vmservice/common.d", f"{tmp_path}/vmservice/common.d")
    ]
    assert sorted(line for line in ours if str(tmp_path) in line or "/share/" in line) == sorted([f"open {config}", *looks])
    modules = set(loaded.split())
    assert not modules & {"enum", "dataclasses", "re", "argparse", "typing", "difflib", "tomllib"}
    assert not modules & {f"vmservice.config.{name}" for name in ("merge", "hints", "toml_errors")}
