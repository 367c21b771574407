"""`vmservice create NAME`: an image becomes a VM, or nothing does."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from dataclasses import dataclass
from typing import Protocol

from vmservice.check.configuration import check_config
from vmservice.config.load import load_config
from vmservice.create import copy, places
from vmservice.create.configuration import USER_DATA_TEXT, Shape, configuration
from vmservice.create.from_root import open_root
from vmservice.create.keys import find_key
from vmservice.create.places import Made, Place
from vmservice.create.progress import human
from vmservice.create.scratch import Scratch, write_all
from vmservice.create.undo import Undo
from vmservice.create.ways import Network, Ways, ways_to
from vmservice.errors import ConfigError, HostError, UsageError, quoted
from vmservice.host.files import RegularFile
from vmservice.image.guest import Guest, look_into, take
from vmservice.image.partitions import grow_last
from vmservice.image.tools import Account, Image

_USER_DATA_MAX_BYTES = 1 << 20


class Source(Protocol):
    """Where a disk comes from: an image that is copied (`copy.py`), or the files of a root (`from_root.py`)."""

    @property
    def path(self) -> str: ...

    @property
    def least_bytes(self) -> int: ...

    def fill(self, disk: int, wanted_bytes: int, account: Account | None) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Options:
    """What was asked for; `size_bytes` is 0 and paths are None where nothing was said. Either `image` or `root` is there."""

    image: str | None
    root: str | None
    size_bytes: int
    shape: Shape
    network: Network
    ssh_key: str | None
    user_data: str | None


@dataclass(frozen=True)
class Created:
    """For the last words to the person. `key_path` is empty where no key was found."""

    guest: Guest
    ways: Ways
    disk_bytes: int
    key_path: str
    notes: list[str]


def create(place: Place, options: Options) -> Created:
    """All or nothing. ConfigError, HostError and their like say what is wrong."""
    keys, key_path = find_key(options.ssh_key)
    user_data = _read_user_data(options.user_data)
    _check_free(place)
    source: Source = open_root(options.root) if options.root is not None else copy.open_source(str(options.image))
    scratch = Scratch(place)
    try:
        if 0 < options.size_bytes < source.least_bytes:
            size = human(source.least_bytes)
            raise UsageError(f"--size {human(options.size_bytes)} is less than the image, which is a disk of {size}")
        with Undo() as undo:
            undo.add(scratch.remove)
            scratch.make()
            made = Made(source.path)
            guest, disk_bytes, notes = _take_image(scratch, made, source, options.size_bytes, place)
            folder = os.path.dirname(place.configuration)
            ways = ways_to(guest, options.network, has_key=bool(keys), folder=folder, user=place.user)
            notes += _notes(guest, ways, keys, user_data)
            if ways.has_cloud_init:
                text = USER_DATA_TEXT if user_data is None else user_data
                scratch.write(places.USER_DATA, lambda fd: write_all(fd, text.encode()), made)
            made.files += [places.MANIFEST, places.TOLD]
            scratch.write(places.MANIFEST, lambda fd: write_all(fd, made.text().encode()), made)
            text_of_file = configuration(place, guest, ways, options.shape, image=source.path, keys=keys)
            _put_in_place(place, scratch, undo, text_of_file)
        return Created(guest, ways, disk_bytes, key_path, notes)
    finally:
        scratch.close()
        source.close()


def _take_image(scratch: Scratch, made: Made, source: Source, wanted_bytes: int, place: Place) -> tuple[Guest, int, list[str]]:
    """(what is in it, the disk's bytes, notes). The disk, and the kernel and initramfs out of it."""
    found: list[tuple[Guest, int, list[str]]] = []

    def fill(disk: int) -> None:
        source.fill(disk, wanted_bytes, place.account)
        size_bytes = os.fstat(disk).st_size
        guest = look_into(Image(disk, source.path, size_bytes, place.account))
        for name, path in ((places.KERNEL, guest.kernel), (places.INITRAMFS, guest.initrd)):
            if path:
                scratch.write(name, functools.partial(take, guest, path), made)
        made.kernel = guest.kernel
        notes = _grow(disk, size_bytes, wanted_bytes, guest)
        found.append((guest, os.fstat(disk).st_size, notes))

    scratch.write(places.DISK, fill, made)
    return found[0]


def _check_free(place: Place) -> None:
    """ConfigError where there is such a VM, or something of one."""
    if os.path.lexists(place.configuration):
        raise ConfigError(f"there is a VM {place.name} already: {place.configuration} exists")
    try:
        names = os.listdir(place.folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os(f"cannot look into {place.folder}", error) from error
    if names or os.path.islink(place.folder):
        what = f"files of an earlier VM, such as {quoted(min(names))}" if names else "a link in its place"
        raise ConfigError(f"{place.folder} has {what}; move that away first")


def _grow(disk: int, old_bytes: int, wanted_bytes: int, guest: Guest) -> list[str]:
    """To what was asked for. The file system is grown by the guest."""
    if wanted_bytes <= old_bytes:
        return []
    os.ftruncate(disk, wanted_bytes)
    root = guest.root
    if root is None:
        return ["the disk has grown; in the guest, for the file system: resize2fs /dev/vda"]
    if not grow_last(disk, old_bytes, root):
        return [f"the disk has grown; partition {root.number}, its root, is not the last one and stays as it is"]
    if guest.has_cloud_init:
        return []
    return [f"the disk and its root partition have grown; in the guest, for the file system: resize2fs /dev/vda{root.number}"]


def _notes(guest: Guest, ways: Ways, keys: str, user_data: str | None) -> list[str]:
    notes = []
    if not guest.initrd:
        notes.append("there is no initramfs: the kernel must have virtio_pci, virtio_blk and the root's file system built in")
    if not keys:
        notes.append(
            "no SSH key was found, so nobody is let in by one: ssh-keygen makes one, --ssh-key FILE names one;"
            " delete this VM, and create it again"
        )
    elif not ways.has_credentials and not ways.has_cloud_init:
        notes.append("the image has neither systemd 252 nor cloud-init, so it cannot be told of an SSH key")
    if user_data is not None and not ways.has_cloud_init:
        notes.append("--user-data is left out: the image has no cloud-init")
    if not guest.has_sshd:
        notes.append("the image has no sshd; `vmservice logs` shows its console")
    elif not ways.has_vsock and not ways.forward:
        notes.append('`vmservice ssh` has no way into this guest; credentials.md, "A shell", has those that there are')
    return notes


def _read_user_data(path: str | None) -> str | None:
    if path is None:
        return None
    with RegularFile(os.path.abspath(path), "user data") as file:
        if file.size_bytes > _USER_DATA_MAX_BYTES:
            raise ConfigError(f"the user data {path} has {file.size_bytes} bytes; at most {_USER_DATA_MAX_BYTES} are allowed")
        try:
            return file.read(_USER_DATA_MAX_BYTES).decode()
        except UnicodeDecodeError:
            raise ConfigError(f"the user data {path} is not UTF-8") from None


def _put_in_place(place: Place, scratch: Scratch, undo: Undo, text: str) -> None:
    """The folder under its name, then the configuration, checked before anybody can start it."""
    folder = os.path.dirname(place.configuration)
    draft = f"{folder}/.{place.name}.create"
    try:
        os.makedirs(folder, 0o700 if place.user else 0o755, exist_ok=True)
        scratch.become()
        undo.add(lambda: os.unlink(draft))
        with open(draft, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600 if place.user else 0o644)
            file.write(text)
            ours = os.fstat(file.fileno())
        _check(place, draft)
        undo.add(lambda: _remove_if(place.configuration, ours))
        # Unlike a rename, a link does not replace a file that has come meanwhile.
        os.link(draft, place.configuration)
        os.unlink(draft)
        undo.keep()
    except FileExistsError:
        raise ConfigError(f"{place.configuration} has come meanwhile: somebody else makes a VM {place.name}") from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise ConfigError(f"{place.folder} has got files meanwhile: somebody else makes a VM {place.name}") from None
        raise HostError.from_os(f"cannot write {error.filename or place.configuration}", error) from error


def _remove_if(path: str, ours: os.stat_result) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), ours):
            os.unlink(path)


def _check(place: Place, draft: str) -> None:
    """Whether the VM could start: its kernel is loaded for a trial. The sentence names the file that it would have been."""
    check_config(load_config(place.name, place.configuration, draft))
