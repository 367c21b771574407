"""The command line: what a person sees who got something wrong, and the status that a program sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from support.images import bzimage, pattern
from support.process import CHECKOUT, Manager, VmProcess, vmservice

from vmservice.config.names import whose_config


def refused(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and the one sentence on standard error."""
    done = vmservice(*arguments, environment=environment)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in lines[0]
    return done.returncode, lines[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly",), 'there is no command "fly"'),
        (("run",), "the following arguments are required: NAME"),
        (("run", "--bus"), "argument --bus: expected one argument"),
        (("run", "demo", "--colour"), "run has no option --colour; see vmservice run --help"),
        (("run", "-demo"), "the following arguments are required: NAME"),
        (("run", "../demo"), '"../demo" cannot be the name of a VM'),
        (("run", "de mo"), '"de mo" cannot be the name of a VM'),
        (("run", ""), '"" cannot be the name of a VM'),
        (("run", "x" * 65), "cannot be the name of a VM"),
        (("check-config", ".hidden"), '".hidden" cannot be the name of a VM'),
    ],
)
def test_usage(arguments: tuple[str, ...], sentence: str) -> None:
    status, line = refused(*arguments)
    assert status == 64
    assert sentence in line
    assert line.startswith("vmservice: ")


def test_no_such_configuration() -> None:
    status, line = refused("run", "nobody")
    assert status == 78
    assert "there is no configuration for the VM nobody: /etc/vmservice/nobody.toml does not exist" in line


def test_a_users_configuration_is_looked_for_in_the_users_folder(tmp_path: Path) -> None:
    status, line = refused("run", "--bus", "session", "nobody", environment={"XDG_CONFIG_HOME": str(tmp_path)})
    assert status == 78
    assert f"{tmp_path}/vmservice/nobody.toml does not exist" in line


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


BROKEN = {
    "not TOML": ("[kernel\n", "line 1, column 8"),
    "unknown key": ('[kernel]\npath = "x"\ninitrmfs = "y"\n', "initramfs"),
    "wrong type": ('[kernel]\npath = "x"\n[cpus]\nboot = "two"\n', "cpus.boot"),
    "no vCPU": ('[kernel]\npath = "x"\n[cpus]\nboot = 0\n', "from 1 to 254"),
    "255 vCPUs": ('[kernel]\npath = "x"\n[cpus]\nboot = 255\n', "from 1 to 254"),
    "more vCPUs than the ceiling": ('[kernel]\npath = "x"\n[cpus]\nboot = 4\nmax = 2\n', "cpus.max"),
    "no memory": ('[kernel]\npath = "x"\n[memory]\nsize = 0\n', "memory.size"),
    "1 MiB": ('[kernel]\npath = "x"\n[memory]\nsize = "1M"\n', "memory.size"),
    "more than the host has": ('[kernel]\npath = "x"\n[memory]\nsize = "7T"\n', "memory.size"),
    "nothing to boot": ("[cpus]\nboot = 1\n", "[kernel]"),
}


@pytest.mark.parametrize(("text", "named"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("command", ["run", "check-config"])
def test_broken_configuration(tmp_path: Path, command: str, text: str, named: str) -> None:
    path = write(tmp_path / "demo.toml", text.replace('"x"', f'"{tmp_path}/x"'))
    write(tmp_path / "x", "no kernel")
    arguments = ("run", "--config", str(path), "--bus", "none", "demo") if command == "run" else ("check-config", str(path))
    status, line = refused(*arguments)
    assert status == 78
    assert named in line
    assert str(path) in line
    assert sorted(os.listdir(tmp_path)) == ["demo.toml", "x"]


MISTAKES = """\
[kernel]
path = "nowhere"
[cpus]
boot = 0
mx = 2
[memory]
size = "64MiB"
[[disk]]
path = "none.raw"
format = "raw"
"""
TOLD = (
    "cpus.mx is not a known key; did you mean max?",
    "cpus.boot is 0; expected a whole number from 1 to 254",
    'memory.size is "64MiB"; expected "64M", a whole number with K, M, G or T',
    'kernel.path is "{folder}/nowhere", which does not exist',
    'disk disk0: path is "{folder}/none.raw", which does not exist',
)


def test_check_config_tells_all_mistakes_a_line_each(tmp_path: Path) -> None:
    path = write(tmp_path / "demo.toml", MISTAKES)
    done = vmservice("check-config", str(path))
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [f"vmservice: {path}: {line.format(folder=tmp_path)}" for line in TOLD]


def test_the_start_tells_all_that_is_wrong_with_the_file_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "demo.toml", MISTAKES)
    manager = Manager()
    process = VmProcess(path, "--sim", "--bus", "none", manager=manager)
    try:
        assert process.wait() == 78
        assert manager.wait_for("STATUS", "cpus")["STATUS"] == f"{path}: {TOLD[0]} (and 2 more mistakes)"
        said = process.messages.splitlines()
    finally:
        process.close()
        manager.close()
    assert [line.partition("error: ")[2] for line in said] == [f"{path}: {line}" for line in TOLD[:3]]


def test_check_config_names_the_files_that_it_has_read(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(pattern(4096)))
    folder = tmp_path / "vmservice"
    (folder / "demo.toml.d").mkdir(parents=True)
    path = write(folder / "demo.toml", f'[kernel]\npath = "{kernel}"\n')
    drop_in = write(folder / "demo.toml.d/a.toml", '[memory]\nsize = "128M"\n')
    for target in (path, drop_in):
        done = vmservice("check-config", str(target), environment={"XDG_CONFIG_HOME": str(tmp_path)})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [f"read {path}, {drop_in}", f"{path}: no problem found"]
    done = vmservice("check-config", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}: no problem found\n"), "it is not in a folder of configurations"
    done = vmservice("check-config", str(drop_in))
    assert done.returncode == 78
    assert f"{drop_in}: " in done.stderr
    assert f"{path}:" not in done.stderr


def test_a_name_of_a_file_cannot_move_the_cursor(tmp_path: Path) -> None:
    path = write(tmp_path / "de\x1b[2Jmo.toml", "[kernel]\npath = 1\n")
    _, line = refused("check-config", str(path))
    assert "\x1b" not in line
    assert "de\\u001B[2Jmo.toml: kernel.path is 1" in line


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check-host --json", "--help", "list --help", "top --json --delay 0.1"])
def test_output_that_cannot_be_written_is_a_sentence(command: str, unbuffered: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": unbuffered}
    environment |= {"PYTHONWARNINGS": "ignore::DeprecationWarning", "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    words = [sys.executable, "-m", "vmservice", *command.split()]

    def run(output: IO[bytes]) -> tuple[int, str]:
        done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, env=environment, check=False, timeout=60)
        return done.returncode, done.stderr.decode()

    if sys.version_info < (3, 12) or "help" not in command or not unbuffered:  # argparse says nothing of it since
        with open("/dev/full", "wb") as full:
            assert run(full) == (71, "vmservice: cannot write to standard output: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        assert run(pipe) == (0, "")


def test_check_config_tries_the_kernel(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(pattern(4096)))
    config = write(tmp_path / "demo.toml", f'[kernel]\npath = "{kernel}"\n[memory]\nsize = "128M"\n')
    good = vmservice("check-config", str(config))
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{config}: no problem found\n", "")
    kernel.write_bytes(bzimage(pattern(4096))[:700])
    status, line = refused("check-config", str(config))
    assert status == 78
    assert line.startswith(f'vmservice: {config}: kernel.path is "{kernel}", which is truncated')


def test_check_config_knows_whose_vm_a_file_is(tmp_path: Path) -> None:
    """By its folder: a user's own VM has passt unless its file says otherwise, and no tap is made for it."""
    (tmp_path / "vmservice").mkdir()
    text = '[kernel]\npath = "/none"\n[[network]]\nmode = "tap"\n'
    for folder, said in (("vmservice", "network[0].tap is missing; expected one that is there"), ("", "/none")):
        config = write(tmp_path / folder / "demo.toml", text)
        done = vmservice("check-config", str(config), environment={"XDG_CONFIG_HOME": f"{tmp_path}/"})
        assert done.returncode == 78
        assert said in done.stderr.splitlines()[0]
        assert f'{config}: kernel.path is "/none", which does not exist' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/etc/vmservice/web-1.toml", ("web-1", False)),
        ("/home/u/.config/vmservice/web.toml", ("web", True)),
        ("/home/u/.config/vmservice/../vmservice/web.toml", ("web", True)),
        ("/home/u/.config/vmservice/old/web.toml", None),
        ("/home/u/.config/vmservice/.web.toml", None),
        ("/home/u/.config/vmservice/web", None),
        ("web.toml", None),
    ],
)
def test_whose_configuration_it_is(monkeypatch: pytest.MonkeyPatch, path: str, owner: tuple[str, bool] | None) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/u/.config/")
    assert whose_config(path) == owner


def test_check_config_finds_credentials_that_no_guest_could_read(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(pattern(4096)))
    key = tmp_path / "key"
    key.write_bytes(b"s3cret" * 6_000)
    text = f'[kernel]\npath = "{kernel}"\n[memory]\nsize = "128M"\n[credentials]\na = "s3cret"\n"b.c" = {{ file = "key" }}\n'
    config = write(tmp_path / "demo.toml", text)
    good = vmservice("check-config", str(config))
    assert (good.returncode, good.stdout, good.stderr) == (0, f"{config}: no problem found\n", "")
    key.write_bytes(b"s3cret" * 8_000)
    status, line = refused("check-config", str(config))
    assert status == 78
    assert f"{config}: [credentials]: the credentials take 642" in line
    assert "at most 57296 fit, which is about 41 KiB of credentials" in line
    assert "s3cret" not in line


def test_check_host_as_json_is_what_it_prints_for_people() -> None:
    machine, people = vmservice("check-host", "--json"), vmservice("check-host")
    checks = json.loads(machine.stdout)
    assert machine.returncode == people.returncode == (69 if any(check["result"] == "missing" for check in checks) else 0)
    results = [line.split()[0] for line in people.stdout.splitlines() if not line.startswith(" ")]
    assert results == [check["result"] for check in checks]
    assert set(results) <= {"ok", "missing", "limited"}


def test_version_and_help() -> None:
    assert vmservice("--version").stdout == "vmservice 0.1.0\n"
    assert "check-host" in vmservice("--help").stdout
