"""`vmservice console NAME [serial|hvc]`: its arguments, and what it does."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

EXIT_OK = 0


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `console` to the commands of the command line."""
    from vmservice.host.attach import LABELS

    console = commands.add_parser("console", help='join this terminal to a console of a VM that has mode = "pty"')
    console.add_argument("name", metavar="NAME", help="the VM's name")
    console.add_argument("console", nargs="?", choices=LABELS, help="which one; the first that there is unless given")
    console.add_argument("--user", action="store_true", help="a VM of `systemctl --user`")


def console(options: argparse.Namespace) -> int:
    """Until the person leaves or the VM goes; the exit status. VmmError as `attach` raises it."""
    from vmservice.config import check_name
    from vmservice.host.attach import attach, runtime_directory

    check_name(options.name)
    attach(options.name, runtime_directory(options.name, user=options.user), options.console)
    return EXIT_OK
