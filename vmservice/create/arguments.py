"""The command lines of `create`, `delete`, `update-kernel` and `edit`, and what they say to the person."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from vmservice.client.arguments import add_common_options
from vmservice.client.parser import Commands, add_command
from vmservice.config.core import MEMORY_MIN_BYTES, VCPUS_MAX
from vmservice.config.names import check_name
from vmservice.config.reader import UNITS
from vmservice.errors import EXIT_INTERRUPTED, UsageError, VmmError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.create.create import Created
    from vmservice.create.places import Place

COMMANDS = ("create", "delete", "update-kernel", "edit")

_DEFAULT_MEMORY = "1G"
_MIB = 1 << 20
_USER_HELP = {"user": "a VM of your own, for systemctl --user"}


def add_commands(commands: Commands[Any]) -> None:
    """Add the commands to those of `vmservice`."""

    def add(command: str, text: str, *, several: bool = False) -> argparse.ArgumentParser:
        parser = add_command(commands, command, text)
        if several:
            parser.add_argument("names", metavar="NAME", nargs="+", help="the VM's name, or those of several")
        else:
            parser.add_argument("name", metavar="NAME", help="the VM's name")
        add_common_options(parser, "user", help_of=_USER_HELP)
        return parser

    create = add("create", "make a VM of a disk image, or of the files of a system")
    source = create.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", metavar="FILE", help="a disk with Linux on it: raw or qcow2")
    source.add_argument("--from-root", metavar="TREE|TAR", help="the files of a system, as mmdebstrap and mkosi write them")
    create.add_argument(
        "--size", metavar="SIZE", help="make the disk as large as that, such as 20G; the image's size, or 4G, unless given"
    )
    create.add_argument("--cpus", metavar="N", type=int, help="how many vCPUs it starts with; 1 unless given")
    create.add_argument("--memory", metavar="SIZE", default=_DEFAULT_MEMORY, help=f"{_DEFAULT_MEMORY} unless given")
    create.add_argument(
        "--network",
        metavar="MODE",
        help="passt (unless given, where it is installed), tap, tap=NAME, bridge=NAME, or none",
    )
    create.add_argument("--ssh-key", metavar="FILE", help="a public key for root; the first of ~/.ssh unless given")
    create.add_argument("--user-data", metavar="FILE", help="what cloud-init in the guest is to do")
    delete = add("delete", "remove a VM that was made by create, with its disk", several=True)
    delete.add_argument("--yes", action="store_true", help="do not ask")
    add("update-kernel", "take the kernel out of a VM's disk anew, after an upgrade in the guest")
    add("edit", "edit the configuration of a VM, check it, and offer a reload")


def run_command(options: argparse.Namespace) -> int:
    """Run the command that was parsed; its exit status."""
    if options.command != "delete":
        return _run(options.name, options)
    names = list(dict.fromkeys(options.names))
    for name in names:
        check_name(name)
    statuses = []
    for name in names:
        try:
            statuses.append(_run(name, options))
        except VmmError as error:
            if len(names) == 1:
                raise
            say(str(error) if name in str(error) else f"{name}: {error}")
            statuses.append(error.exit_status)
        if statuses[-1] == EXIT_INTERRUPTED:
            return EXIT_INTERRUPTED
    return next((status for status in statuses if status != os.EX_OK), os.EX_OK)


def _run(name: str, options: argparse.Namespace) -> int:
    check_name(name)
    from vmservice.create.places import place_of
    from vmservice.create.undo import Interrupted, interruptible

    place = place_of(name, user=options.user)
    try:
        with interruptible():
            return {"create": _create, "delete": _delete, "update-kernel": _update_kernel, "edit": _edit}[options.command](
                place, options
            )
    except Interrupted:
        say("interrupted; nothing is changed" if options.command != "delete" else "interrupted")
        return EXIT_INTERRUPTED


def size_of(option: str, text: str) -> int:
    """Bytes, as sizes are written in a configuration."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "")
    if not number.isascii() or not number.isdecimal() or len(number) > 18 or not int(number):
        raise UsageError(f"{option} {text} is no size; expected a number of bytes, or one with K, M, G or T, such as 20G")
    return int(number) * UNITS.get(unit, 1)


def _create(place: Place, options: argparse.Namespace) -> int:
    from vmservice.create.configuration import Shape
    from vmservice.create.create import Options, create
    from vmservice.create.ways import read_network

    size = size_of("--size", options.size) if options.size is not None else 0
    if size % _MIB:
        raise UsageError(f"--size {options.size} is no multiple of 1M")
    if size_of("--memory", options.memory) < MEMORY_MIN_BYTES:
        raise UsageError(f"--memory {options.memory} is too little for any guest; expected a size such as 512M")
    if options.cpus is not None and not 1 <= options.cpus <= VCPUS_MAX:
        raise UsageError(f"no VM can have {options.cpus} vCPUs; 1 to {VCPUS_MAX} are possible")
    asked = Options(
        image=options.image,
        root=options.from_root,
        size_bytes=size,
        shape=Shape(options.cpus, options.memory),
        network=read_network(options.network, user=options.user),
        ssh_key=options.ssh_key,
        user_data=options.user_data,
    )
    _print_created(place, create(place, asked))
    return os.EX_OK


def _print_created(place: Place, created: Created) -> None:
    from vmservice.create.progress import human

    print(f"{place.name} is made: {created.guest.pretty_name}, a disk of {human(created.disk_bytes)}")
    print(f"  configuration   {place.configuration}")
    print(f"  disk, kernel    {place.folder}")
    print(f"  command line    of {created.guest.source}")
    if created.key_path:
        print(f"  SSH key         {created.key_path}")
    for note in created.notes:
        print(f"  note            {note}")
    user = " --user" if place.user else ""
    print("What to do next:")
    print(f"  {place.systemctl('start')}")
    if created.key_path and created.guest.has_sshd and (created.ways.has_vsock or created.ways.forward):
        print(f"  vmservice ssh{user} {created.ways.login}@{place.name}")
    print(f"  vmservice logs -f{place.words}")


def _delete(place: Place, options: argparse.Namespace) -> int:
    from vmservice.create.delete import delete

    deleted = delete(place, lambda shown: options.yes or ask(f"This is removed:\n{shown}\nRemove it?"))
    if deleted is None:
        say("nothing is removed" if sys.stdin.isatty() else "nothing is removed; --yes removes it without a question")
        return 1
    if deleted.kept:
        say(
            f"{place.folder} stays, for it has what create did not make: {', '.join(quoted(name) for name in deleted.kept[:5])}"
        )
    if os.path.isdir(f"{place.configuration}.d"):
        say(f"{place.configuration}.d stays, which has drop-ins for it")
    if deleted.is_enabled:
        say(f"its unit is still enabled: {place.systemctl('disable')}")
    return os.EX_OK


def _update_kernel(place: Place, options: argparse.Namespace) -> int:
    from vmservice.create.kernel import update_kernel

    guest, notes = update_kernel(place)
    print(f"{place.name} starts with {guest.kernel} from now on ({guest.source})")
    for note in notes:
        say(note)
    return os.EX_OK


def _edit(place: Place, options: argparse.Namespace) -> int:
    from vmservice.create.edit import edit

    edit(place, ask, say)
    return os.EX_OK


def ask(question: str) -> bool:
    """Whether the person says yes. Where there is nobody to ask, the answer is no."""
    if not sys.stdin.isatty():
        print(f"{question} Standard input is no terminal, so the answer is no.", file=sys.stderr, flush=True)
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def say(text: str) -> None:
    """A note for the person, apart from what the command is asked for."""
    print(f"vmservice: {text}", file=sys.stderr, flush=True)
