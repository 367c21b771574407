"""The command line: `vmservice run`, the checks of configuration and host, and the commands that ask VMs over the bus."""

from __future__ import annotations

import errno
import os
import sys

from vmservice.errors import EXIT_INTERRUPTED, HostError, UsageError, VmmError, sentences

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from vmservice.client.parser import Commands


# What units run beside the VM; nobody types these.
_UNITS_COMMANDS = {
    "start-back-ends": "vmservice.service.back_ends",
    "disk-daemon": "vmservice.service.disk_daemon",
    "passt-daemon": "vmservice.service.passt_daemon",
    "manager": "vmservice.service.manager_daemon",
    "newer-kernel": "vmservice.create.newer",
    "make-tap": "vmservice.service.tap_helper",
}

# What write(2) fails with at a file that has no room, or no device behind it. No other OSError is let through by a command.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status, after sysexits(3)."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            return _run_words(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # what fails at the interpreter's end has neither a sentence nor a status of ours
    except VmmError as error:
        for sentence in sentences(error):
            print(f"vmservice: {sentence}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # the person knows; what is to be put right on the way out has been
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_output()
        return os.EX_OK
    except OSError as error:
        if error.errno not in _OF_WRITES or error.filename is not None:
            raise
        _drop_output()
        print(f"vmservice: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return HostError.exit_status


def _run_words(words: list[str]) -> int:
    if words and words[0] in _UNITS_COMMANDS:
        return _run_module(_UNITS_COMMANDS[words[0]], words[1:])
    return _run_as_unit(words) if _is_unit_command(words) else _dispatch(words)


def _drop_output() -> None:
    """What is left of it would be written, and fail, once more at the end."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run_module(name: str, words: list[str]) -> int:
    __import__(name)
    return int(sys.modules[name].main(words))


def _is_unit_command(words: list[str]) -> bool:
    """Whether this is the very command of the units. Only argparse may judge any other; its import takes as long as half a
    start, so the units do without."""
    return words[:-1] in (["run"], ["run", "--bus", "session"]) and not words[-1].startswith("-")


def _run_as_unit(words: list[str]) -> int:
    import gc

    gc.disable()  # until the guest runs: a start makes a million objects and no garbage

    from vmservice.service.main import RunOptions, run

    return run(RunOptions(words[-1], bus="session" if len(words) > 2 else "system"))


def _dispatch(words: list[str]) -> int:
    from vmservice.client.arguments import run_command
    from vmservice.client.parser import parse

    options = parse(*_parser(), words)
    if options.command == "run":
        return _run(options)
    if options.command == "check-host":
        return _check_host(options.json)
    if options.command == "check-config":
        return _check_config(options.target, options.user)
    from vmservice.create import arguments as create

    return create.run_command(options) if options.command in create.COMMANDS else run_command(options)


def _run(options: argparse.Namespace) -> int:
    from vmservice.service.main import RunOptions, run

    if options.user and options.bus not in (None, "session"):
        raise UsageError(f"--user is --bus session; --bus {options.bus} contradicts it")
    return run(
        RunOptions(
            options.name,
            config_path=options.config,
            bus=options.bus or ("session" if options.user else "system"),
            boot=not options.no_boot,
            simulate=options.sim,
        )
    )


def _parser() -> tuple[argparse.ArgumentParser, Commands[Any]]:
    """The parser, and what it has of the commands."""
    from vmservice import __version__
    from vmservice.client.arguments import COMMON_OPTIONS, add_commands, add_common_options
    from vmservice.client.parser import Parser, add_command
    from vmservice.create.arguments import add_commands as add_create_commands

    parser = Parser(prog="vmservice", description="Virtual machines that are systemd services.")
    parser.add_argument("--version", action="version", version=f"vmservice {__version__}")
    for name, text in COMMON_OPTIONS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"{text}; for the commands that have it")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    run = add_command(commands, "run", "run a VM in the foreground, as vm@NAME.service does")
    run.add_argument("name", metavar="NAME", help="the VM's name; its configuration is /etc/vmservice/NAME.toml")
    run.add_argument("--config", metavar="FILE", help="read this configuration instead")
    run.add_argument("--bus", metavar="BUS", help="system (the default), session, none, or the address of a D-Bus bus")
    run.add_argument("--no-boot", action="store_true", help="stay in state created until Boot is called over the bus")
    run.add_argument("--sim", action="store_true", help="put a simulated machine behind the bus object; needs no KVM")
    add_common_options(run, "user", help_of={"user": "the same as --bus session"})

    check_config = add_command(commands, "check-config", "check a configuration and every file that it names")
    check_config.add_argument("target", metavar="NAME|FILE", help="a VM's name, or a file (with a / or ending in .toml)")
    add_common_options(check_config, "user", help_of={"user": "look for NAME in ~/.config/vmservice"})

    check_host = add_command(commands, "check-host", "say what this host can run, and what is missing")
    add_common_options(check_host, "json")
    add_create_commands(commands)
    add_commands(commands)
    return parser, commands


def _check_config(target: str, user: bool) -> int:
    from vmservice.check.configuration import find_mistakes
    from vmservice.check.in_unit import judge_files
    from vmservice.config.load import read_config
    from vmservice.config.names import config_path, whose_config
    from vmservice.errors import one_line, raise_all

    path = target if "/" in target or target.endswith(".toml") else config_path(target, user=user)
    folder = os.path.dirname(os.path.abspath(path))
    if folder.endswith(".toml.d") and whose_config(folder.removesuffix(".d")) is not None:
        path = folder.removesuffix(".d")  # a drop-in says nothing without the others
    owner = whose_config(path)
    config, mistakes = read_config(owner[0] if owner is not None else "config", path)
    judge = judge_files(config, is_system=owner is not None and not owner[1])
    for note in judge.notes:
        print(f"vmservice: {note}", file=sys.stderr)
    raise_all([*mistakes, *find_mistakes(config, is_whole=not mistakes), *judge.mistakes])
    if len(config.read_from) > 1:
        print(one_line(f"read {', '.join(config.read_from)}"))
    print(one_line(f"{path}: no problem found"))
    return os.EX_OK


def _check_host(as_json: bool) -> int:
    from vmservice.check.host import MISSING, check_host

    checks = check_host()
    if as_json:
        import json

        print(json.dumps([check.as_dict() for check in checks], indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.result:8} {check.name:{width}}  {check.detail}")
            if check.hint:
                print(f"{'':8} {'':{width}}  → {check.hint}")
    return os.EX_UNAVAILABLE if any(check.result == MISSING for check in checks) else os.EX_OK
