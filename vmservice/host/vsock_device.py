"""The host's end of a guest's sockets: /dev/vhost-vsock, and the number by which the host knows the guest (CID)."""

from __future__ import annotations

import errno
import zlib

from vmservice.errors import HostError
from vmservice.host.vhost import VhostVsock, open_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmservice.host.consoles.base import Console

_WANTED_BY = "[vsock]"
# How many numbers are tried for a guest that has none of its own. All guests of a host share them, of whatever program.
_TRIES = 64
# Chosen ones fit into a signed number of 32 bits, which some programs take a CID for; small ones are left to people.
_LOWEST, _HIGHEST = 1 << 16, (1 << 31) - 1


class VsockEnd:
    """The descriptor, in the name of a CID: `wanted`, or one chosen from the VM's name where that is 0.

    `cid` is known from `open` on. It stays for as long as the process lives, unless somebody else takes it during `renew`.
    """

    consoles: Sequence[Console] = ()

    def __init__(self, vm_name: str, wanted: int) -> None:
        self.cid = 0
        self._vm_name = vm_name
        self._wanted = wanted
        self.vhost = VhostVsock(-1, f"the sockets of {vm_name}")

    def open(self) -> None:
        """Nothing where it is open already. HostError, with nothing left open."""
        if self.vhost.fd >= 0:
            return
        self.vhost.fd = open_device("vhost-vsock", _WANTED_BY)
        try:
            self.vhost.look()
            self.cid = self._take_cid()
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """A guest is gone: whoever is connected to it is told so, and the next one has the same CID.

        HostError, with nothing left open, where the host does not do it again; the next `open` says why.
        """
        self.close()
        self.open()

    def _take_cid(self) -> int:
        for cid in self._candidates():
            try:
                self.vhost.set_cid(cid)
            except HostError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return cid
        if self._wanted:
            raise HostError(
                f"vsock.cid is {self._wanted}, which another virtual machine on this host has; one of its own is expected, or 0"
                " for one that is chosen",
                errno.EADDRINUSE,
            )
        raise HostError(
            f"no CID is left for [vsock]: {_TRIES} were tried, and other virtual machines have them", errno.EADDRINUSE
        )

    def _candidates(self) -> Iterator[int]:
        if self._wanted:
            yield self._wanted
            return
        if self.cid:
            yield self.cid  # the one before
        for attempt in range(_TRIES):
            yield chosen_cid(self._vm_name, attempt)

    def fds(self) -> dict[str, int]:
        return {"vhost-vsock": self.vhost.fd}

    def close(self) -> None:
        self.vhost.close()


def chosen_cid(vm_name: str, attempt: int = 0) -> int:
    """The same for a name on every host and at every start."""
    return _LOWEST + zlib.crc32(f"{vm_name}\0{attempt}".encode()) % (_HIGHEST - _LOWEST)
