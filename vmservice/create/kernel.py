"""`vmservice update-kernel NAME`: the kernel and the initramfs of the VM's disk, taken out anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vmservice.config.load import Config, load_config
from vmservice.create import places
from vmservice.create.places import Made, Place
from vmservice.create.scratch import new_file, write_all
from vmservice.create.undo import Undo
from vmservice.errors import ConfigError, HostError, quoted
from vmservice.image.guest import Guest, look_into, take
from vmservice.image.tools import Image

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def update_kernel(place: Place) -> tuple[Guest, list[str]]:
    """(what the disk has, notes for the person). The VM must not run: what a guest has not written yet cannot be read.

    Both files are replaced, or none. ConfigError where the VM is not one that `create` has made.
    """
    config = load_config(place.name, place.configuration)
    made = _made(place)
    paths = _paths(place, config)
    lock = places.hold(place, "update the kernel of")
    try:
        with _open_folder(place.folder) as folder, _open_disk(folder, place) as image:
            guest = look_into(image)
            if bool(guest.initrd) != (places.INITRAMFS in paths):
                change = "has an initramfs now: add" if guest.initrd else "has no initramfs any more: remove"
                line = f'initramfs = "{place.folder}/{places.INITRAMFS}"'
                raise ConfigError(f"{place.configuration}: the system of the disk {change} {line} in [kernel], then try again")
            made.kernel = guest.kernel
            _replace(folder, guest, made, paths, place)
    finally:
        os.close(lock)
    notes = []
    if config.kernel is not None and config.kernel.cmdline != guest.cmdline:
        line = quoted(guest.cmdline, len(guest.cmdline))
        notes.append(f"{place.configuration} keeps its kernel.cmdline; of {guest.source} it would be now\n  cmdline = {line}")
    return guest, notes


def _made(place: Place) -> Made:
    made = places.read_made(place.folder)
    if made is None:
        raise ConfigError(f"{place.name} was not made by `vmservice create`; its kernel is what {place.configuration} says")
    return made


def _paths(place: Place, config: Config) -> list[str]:
    """The names of the files that are to be replaced."""
    kernel = config.kernel
    if kernel is None:
        raise ConfigError(f"{place.configuration}: there is no [kernel]; a firmware finds the kernel on the disk by itself")
    names = [places.KERNEL]
    if kernel.path != f"{place.folder}/{places.KERNEL}":
        raise ConfigError(
            f"{place.configuration}: kernel.path is {kernel.path}; expected {place.folder}/{places.KERNEL}, which is what is"
            " taken out of the disk"
        )
    if kernel.initramfs == f"{place.folder}/{places.INITRAMFS}":
        names.append(places.INITRAMFS)
    return names


@contextlib.contextmanager
def _open_folder(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, _OPEN_FOLDER)
    except OSError as error:
        raise HostError.from_os(f"cannot open {path}", error) from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _open_disk(folder: int, place: Place) -> Iterator[Image]:
    """The files are the account's, and so no link of theirs is followed."""
    path = f"{place.folder}/{places.DISK}"
    try:
        fd = os.open(places.DISK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        raise HostError.from_os(f"cannot open {path}", error) from error
    try:
        yield Image(fd, path, os.fstat(fd).st_size, place.account)
    finally:
        os.close(fd)


def _replace(folder: int, guest: Guest, made: Made, kernels: list[str], place: Place) -> None:
    """The list of what was made names the kernel, too."""
    sources = {places.KERNEL: guest.kernel, places.INITRAMFS: guest.initrd}
    names = [*kernels, places.MANIFEST]
    try:
        with Undo() as undo:
            for name in names:
                draft = f".{name}.new"
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=folder)
                undo.add(lambda draft=draft: os.unlink(draft, dir_fd=folder))  # type: ignore[misc]
                fd = new_file(folder, draft, place)
                try:
                    if name == places.MANIFEST:
                        write_all(fd, made.text().encode())
                    else:
                        take(guest, sources[name], fd)
                finally:
                    os.close(fd)
            for name in names:
                os.rename(f".{name}.new", name, src_dir_fd=folder, dst_dir_fd=folder)
            undo.keep()
    except OSError as error:
        raise HostError.from_os(f"cannot write the kernel of {place.name}", error) from error
