"""`vmservice edit NAME`: the configuration in a person's editor, and back only when it is right."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable

from vmservice.check.configuration import find_mistakes
from vmservice.check.in_unit import judge_files
from vmservice.client.systemctl import run_systemctl
from vmservice.config.load import load_config
from vmservice.create import places
from vmservice.create.places import Place
from vmservice.create.undo import Undo, unmoved_by_ctrl_c
from vmservice.errors import ConfigError, HostError, HostFacilityMissing, raise_all, sentences

_EDITORS = ("editor", "nano", "vim", "vi")


def edit(place: Place, ask: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """`ask` puts a question to the person. ConfigError where the file is wrong and is not to be edited again."""
    before, status = _read(place)
    draft = f"{os.path.dirname(place.configuration)}/.{place.name}.edit-{os.getpid()}.toml"
    try:
        with Undo() as undo:
            undo.add(lambda: os.unlink(draft))
            with open(draft, "xb") as file:
                os.fchmod(file.fileno(), status.st_mode & 0o777)
                file.write(before)
            _until_right(place, draft, ask, say)
            with open(draft, "rb") as file:
                after = file.read()
            if after == before:
                say(f"{place.configuration} is as it was")
                os.unlink(draft)
                undo.keep()
                return
            if _read(place)[0] != before:
                raise ConfigError(f"{place.configuration} has been changed by somebody else meanwhile; it is left as it is")
            if os.geteuid() == 0:
                os.chown(draft, status.st_uid, status.st_gid)
            os.rename(draft, place.configuration)
            undo.keep()
    except OSError as error:
        raise HostError.from_os(f"cannot write {error.filename or place.configuration}", error) from error
    _apply(place, ask, say)


def _read(place: Place) -> tuple[bytes, os.stat_result]:
    try:
        with open(place.configuration, "rb") as file:
            return file.read(), os.fstat(file.fileno())
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration for the VM {place.name}: {place.configuration} does not exist") from None
    except OSError as error:
        raise HostError.from_os(f"cannot read {place.configuration}", error) from error


def _until_right(place: Place, draft: str, ask: Callable[[str], bool], say: Callable[[str], None]) -> None:
    while True:
        _run_editor(draft)
        try:
            config = load_config(place.name, place.configuration, draft)
            raise_all([*find_mistakes(config), *judge_files(config, is_system=not place.user).mistakes])
        except ConfigError as error:
            for sentence in sentences(error):
                say(sentence)
            if not ask("Edit it again? Otherwise nothing is changed."):
                raise ConfigError(f"{place.configuration} is as it was") from None
        else:
            return


def _run_editor(path: str) -> None:
    """What the person has chosen by VISUAL or EDITOR, which may be a command with options."""
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    for line in [shlex.split(chosen)] if chosen else [[name] for name in _EDITORS]:
        try:
            with unmoved_by_ctrl_c():
                status = subprocess.run([*line, path], check=False).returncode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError.from_os(f"cannot run the editor {line[0]}", error) from error
        if status != 0:
            raise HostError(f"the editor {line[0]} has ended with {status}; nothing is changed")
        return
    raise HostFacilityMissing(f"the editor {chosen or 'vi'} is not installed; EDITOR names another one")


def _apply(place: Place, ask: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """A running VM takes some of it at a reload, and the rest at its next start."""
    say(f"{place.configuration} is changed")
    if places.unit_word(place, "is-active") != "active":
        return
    if ask(f"{place.name} runs. Reload it now? What cannot change while it runs waits for its next start."):
        status = run_systemctl("reload", [place.name], user=place.user)
        if status != 0:
            raise HostError(f"`{place.systemctl('reload')}` has failed with exit status {status}")
