"""`vmservice console NAME [LABEL]`: its arguments, and what it does."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXIT_OK = 0


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `console` to the commands of the command line."""
    console = commands.add_parser("console", help='join this terminal to a console of a VM in mode "pty" or "socket"')
    console.add_argument("name", metavar="NAME", help="the VM's name")
    console.add_argument(
        "console",
        nargs="?",
        metavar="LABEL",
        help="serial, hvc or the name of a port; the first console that there is unless given",
    )
    console.add_argument("--user", action="store_true", help="a VM of `systemctl --user`")


def console(options: argparse.Namespace) -> int:
    """Until the person leaves or the VM goes; the exit status. VmmError as `attach` raises it."""
    from vmservice.config import check_name, is_name
    from vmservice.errors import UsageError
    from vmservice.host.attach import attach, runtime_directory

    check_name(options.name)
    if options.console is not None and not is_name(options.console):
        raise UsageError(f"{options.console[:80]!r} cannot be the name of a console: it is serial, hvc, or a port's name")
    attach(options.name, runtime_directory(options.name, user=options.user), options.console)
    return EXIT_OK
