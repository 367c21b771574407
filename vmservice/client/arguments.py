"""The command lines of the commands that ask VMs. What they do is in `commands.py`, which takes the import of a bus library."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vmservice.config import VCPUS_MAX, check_name, is_name
from vmservice.errors import UsageError
from vmservice.vm.state import TRANSITIONS

# Command → what it does, for --help.
VERBS = {
    "boot": "start the guest of a VM in state created or shutdown; a paused one is resumed",
    "pause": "stop every vCPU and every device",
    "resume": "let a paused VM run again",
    "shutdown": "stop the guest at once, without asking it; the process stays for a boot",
    "power-button": "press the power button; what follows is for the guest to decide",
    "reboot": "reset the VM, as by the reset button",
    "resize": "have the guest take vCPUs, or give them back",
}


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to those of `vmservice`."""

    def add(command: str, text: str, *, name: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(command, help=text)
        if name:
            parser.add_argument("name", metavar="NAME", help="the VM's name")
        parser.add_argument("--user", action="store_true", help="ask on the session bus, where systemctl --user has its VMs")
        return parser

    listing = add("list", "list the VMs on the bus", name=False)
    status = add("status", "show a VM, its process and its unit")
    for parser in (listing, status):
        parser.add_argument("--json", action="store_true", help="print it as JSON")
    for verb, text in VERBS.items():
        parser = add(verb, text)
        if verb == "resize":
            parser.add_argument("vcpus", metavar="N", type=int, help="how many vCPUs the VM shall have")
    console = add("console", 'join this terminal to a console of a VM in mode "pty" or "socket"')
    console.add_argument(
        "console",
        nargs="?",
        metavar="LABEL",
        help="serial, hvc or the name of a port; the first console that there is unless given",
    )
    states = tuple(TRANSITIONS)
    wait = add("wait", "wait until a VM is in a state")
    wait.add_argument("state", metavar="STATE", choices=states, help=f"one of {', '.join(states)}; no process is shutdown, too")
    wait.add_argument("--timeout", metavar="SEC", type=float, help="give up after so many seconds, with exit status 75")


def run_command(options: argparse.Namespace) -> int:
    """Run the command that was parsed; its exit status."""
    if options.command == "console":
        return _run_console(options.name, options.console, user=options.user)
    from vmservice.client import commands

    if options.command == "list":
        return commands.list_vms(user=options.user, as_json=options.json)
    check_name(options.name)
    if options.command == "status":
        return commands.show_status(options.name, user=options.user, as_json=options.json)
    if options.command == "wait":
        if options.timeout is not None and not 0 < options.timeout < float("inf"):
            raise UsageError(f"--timeout {options.timeout:g} is no time to wait; it must be more than 0 seconds")
        return commands.wait_for_state(options.name, options.state, user=options.user, timeout_sec=options.timeout)
    vcpus = getattr(options, "vcpus", None)
    if vcpus is not None and not 1 <= vcpus <= VCPUS_MAX:
        raise UsageError(f"no VM can have {vcpus} vCPUs; 1 to {VCPUS_MAX} are possible")
    return commands.run_verb(options.command, options.name, user=options.user, vcpus=vcpus)


def _run_console(name: str, label: str | None, *, user: bool) -> int:
    """Until the person leaves or the VM goes."""
    from vmservice.client import console

    check_name(name)
    if label is not None and not is_name(label):
        raise UsageError(f"{label[:80]!r} cannot be the name of a console: it is serial, hvc, or a port's name")
    console.attach(name, console.runtime_directory(name, user=user), label)
    return os.EX_OK
