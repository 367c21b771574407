"""The command lines of the commands that ask VMs. What they do is in `commands.py`, which takes the import of a bus library."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vmservice.client.parser import Commands, add_command
from vmservice.client.texts import SEVERAL
from vmservice.config.core import VCPUS_MAX
from vmservice.config.names import check_name, is_name
from vmservice.control.api import VERBS
from vmservice.errors import UsageError, quoted
from vmservice.vm.state import TRANSITIONS

# Options that are taken before the command as well as after it, and what they mean.
COMMON_OPTIONS = {
    "user": "ask on the session bus, where systemctl --user has its VMs",
    "json": "print it as JSON",
    "no-ask-password": "do not ask for a password where polkit wants one",
}
# systemctl's verb → what it does here.
UNIT_VERBS = {
    "start": "start the VM's unit, by systemctl",
    "stop": "stop the VM's unit, by systemctl: the guest is powered off",
    "restart": "stop the VM's unit and start it again, by systemctl",
}
POWEROFF_TIMEOUT_SEC = 120.0
FOLLOWED_ENTRIES = 10
TOP_DELAY_SEC = 2.0
TOP_DELAYS_SEC = (0.1, 3600.0)
# `top.ORDERS`, whose import takes the bus library's.
TOP_ORDERS = ("cpu", "memory", "exits", "disk", "network", "name")
_STATES = ", ".join(TRANSITIONS)


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number") from None


def _state(text: str) -> str:
    if text not in TRANSITIONS:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is no state of a VM; expected one of {_STATES}")
    return text


def add_common_options(parser: argparse.ArgumentParser, *names: str, help_of: dict[str, str] | None = None) -> None:
    """Let `parser`, of one command, take these of COMMON_OPTIONS."""
    for name in names:
        text = (help_of or {}).get(name) or COMMON_OPTIONS[name]
        parser.add_argument(f"--{name}", action="store_true", help=text)


def add_commands(commands: Commands[Any]) -> None:
    """Add the commands to those of `vmservice`."""

    def add(command: str, text: str, *common: str, names: str = "one") -> argparse.ArgumentParser:
        """`names` is "one", "several" or "none": how many VMs the command takes."""
        parser = add_command(commands, command, text, SEVERAL if names == "several" else "")
        if names == "one":
            parser.add_argument("name", metavar="NAME", help="the VM's name")
        elif names == "several":
            parser.add_argument("names", metavar="NAME", nargs="+", help="the VM's name, or those of several")
        add_common_options(parser, "user", *common)
        return parser

    asks = "no-ask-password"
    listing = add("list", "list the VMs that run", "json", names="none")
    listing.add_argument("--all", action="store_true", help="also those that have failed, and those that are only configured")
    _add_top(add)
    add("status", "show a VM, its process, its unit, and the last lines of its journal", "json", names="several")
    for verb in VERBS:
        if verb.command:
            parser = add(verb.command, verb.sentence, asks, names="one" if verb.signature else "several")
            if verb.signature == "y":
                parser.add_argument("vcpus", metavar="N", type=_whole_number, help="how many vCPUs the VM shall have")
    add("shutdown", "ask the guest to power itself off, without waiting for it", asks, names="several")
    poweroff = add("poweroff", "power the guest off and wait until it is", asks, names="several")
    poweroff.add_argument("--force", action="store_true", help="stop it at once, without asking the guest; the process stays")
    reboot = add("reboot", "power the guest off, wait until it is, and start it again", asks, names="several")
    for parser in (poweroff, reboot):
        parser.add_argument(
            "--timeout",
            metavar="SEC",
            type=_number,
            default=POWEROFF_TIMEOUT_SEC,
            help=f"give up after so many seconds, with exit status 75; {POWEROFF_TIMEOUT_SEC:g} unless given",
        )
    for command, text in UNIT_VERBS.items():
        parser = add_command(commands, command, text)
        parser.add_argument("names", metavar="NAME", nargs="+", help="the VM's name, or those of several")
        add_common_options(parser, "user", asks)
    ssh = add_command(commands, "ssh", "a shell in the guest, or a command there, by ssh")
    ssh.add_argument("name", metavar="[USER@]NAME", help="the VM's name, and who to be in the guest")
    ssh.add_argument("words", metavar="COMMAND", nargs=argparse.REMAINDER, help="what is run there; a shell unless given")
    add_common_options(ssh, "user")
    _add_watching(add)


def _add_top(add: Any) -> None:
    top = add("top", "show what each VM that runs takes of the host and does, again and again", "json", names="none")
    top.add_argument(
        "--delay", metavar="SEC", type=_number, default=TOP_DELAY_SEC, help=f"how often; {TOP_DELAY_SEC:g} seconds unless given"
    )
    top.add_argument(
        "--once",
        action="store_true",
        help="show it once, measured over one such time; so it is with --json, and without a terminal",
    )
    orders = ", ".join(TOP_ORDERS)
    top.add_argument("--sort", metavar="COLUMN", choices=TOP_ORDERS, default=TOP_ORDERS[0], help=f"by one of {orders}")


def _add_watching(add: Any) -> None:
    logs = add("logs", "show what the journal has of a VM: its own lines, systemd's about it, and its guest's")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with each line as it comes")
    logs.add_argument(
        "-n",
        "--lines",
        metavar="N",
        type=_whole_number,
        help=f"only the last N entries; all unless given, {FOLLOWED_ENTRIES} with --follow",
    )
    console = add("console", 'type at a console of a VM in mode "pty" or "socket", or talk to it through a pipe')
    console.add_argument(
        "console",
        nargs="?",
        metavar="LABEL",
        help="serial, hvc or the name of a port; the first console that there is unless given",
    )
    wait = add("wait", "wait until a VM is in a state", names="several")
    wait.add_argument("state", metavar="STATE", type=_state, help=f"one of {_STATES}; no process is shutdown, too")
    wait.add_argument("--timeout", metavar="SEC", type=_number, help="give up after so many seconds, with exit status 75")


def run_command(options: argparse.Namespace) -> int:
    """Run the command that was parsed; its exit status."""
    command, user = options.command, options.user
    if command == "list":
        from vmservice.client.commands import list_vms

        return list_vms(user=user, as_json=options.json, everything=options.all)
    if command == "top":
        return _run_top(options)
    if command in UNIT_VERBS or hasattr(options, "names"):
        return _run_on_several(options, list(dict.fromkeys(options.names)))
    check_name(options.name.rpartition("@")[2] if command == "ssh" else options.name)
    if command == "ssh":
        from vmservice.client.ssh import run_ssh

        run_ssh(options.name, options.words, user=user)
    if command == "console":
        return _run_console(options.name, options.console, user=user)
    if command == "logs":
        return _run_logs(options.name, options.lines, user=user, follow=options.follow)
    from vmservice.client import commands

    if not 1 <= options.vcpus <= VCPUS_MAX:
        raise UsageError(f"no VM can have {options.vcpus} vCPUs; 1 to {VCPUS_MAX} are possible")
    ask_password = not options.no_ask_password
    return commands.run_verb("Resize", [options.name], user=user, ask_password=ask_password, vcpus=options.vcpus)


def _run_on_several(options: argparse.Namespace, names: list[str]) -> int:
    command, user = options.command, options.user
    for name in names:
        check_name(name)
    timeout_sec = getattr(options, "timeout", None)
    if timeout_sec is not None and not 0 < timeout_sec < float("inf"):
        raise UsageError(f"--timeout {timeout_sec:g} is no time to wait; it must be more than 0 seconds")
    if command in UNIT_VERBS:
        from vmservice.client.systemctl import run_systemctl

        status = run_systemctl(command, names, user=user, ask_password=not options.no_ask_password)
        _tell_near_names(names, user=user)
        return status
    from vmservice.client import commands

    if command == "status":
        return commands.show_status(names, user=user, as_json=options.json)
    if command == "wait":
        return commands.wait_for_state(names, options.state, user=user, timeout_sec=timeout_sec)
    ask_password = not options.no_ask_password
    if command == "reboot":
        return commands.reboot(names, user=user, ask_password=ask_password, timeout_sec=options.timeout)
    if command == "poweroff" and not options.force:
        return commands.power_off(names, user=user, ask_password=ask_password, timeout_sec=options.timeout)
    members = {verb.command: verb.member for verb in VERBS if verb.command}
    member = {"shutdown": "PowerButton", "poweroff": "Shutdown", **members}[command]
    return commands.run_verb(member, names, user=user, ask_password=ask_password)


def _tell_near_names(names: list[str], *, user: bool) -> None:
    """To systemd any instance of a template is a unit, and to stop one that never ran is done at once."""
    from vmservice.client.several import tell
    from vmservice.client.vms import is_configured, near_name

    unknown = [name for name in names if not is_configured(name, user=user)]
    for name in unknown:
        if meant := near_name(name, user=user):
            tell(f"the VM {name} has no configuration{meant}")


def _run_top(options: argparse.Namespace) -> int:
    from vmservice.client.top import run_top

    least_sec, most_sec = TOP_DELAYS_SEC
    if not least_sec <= options.delay <= most_sec:
        raise UsageError(f"--delay {options.delay:g} is out of range; it takes {least_sec:g} to {most_sec:g} seconds")
    return run_top(user=options.user, delay_sec=options.delay, order=options.sort, once=options.once, as_json=options.json)


def _run_logs(name: str, count: int | None, *, user: bool, follow: bool) -> int:
    from vmservice.client.logs import show_logs

    if count is not None and count < 0:
        raise UsageError(f"{count} lines cannot be shown; --lines takes 0 or more")
    return show_logs(name, user=user, count=FOLLOWED_ENTRIES if follow and count is None else count, follow=follow)


def _run_console(name: str, label: str | None, *, user: bool) -> int:
    """Until the person leaves, the input ends or the VM goes."""
    from vmservice.client import console

    if label is not None and not is_name(label):
        raise UsageError(f"{quoted(label)} cannot be the name of a console: it is serial, hvc, or a port's name")
    try:
        console.attach(name, console.runtime_directory(name, user=user), label)
    except console.NoConsole as error:
        from vmservice.client.no_console import why

        raise why(name, label, user=user) or error from None
    return os.EX_OK
