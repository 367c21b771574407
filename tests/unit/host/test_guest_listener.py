"""Who may speak for the guest: root in it, by CID and port; and the socket that systemd passes."""

from __future__ import annotations

import _socket
import os
import socket
from typing import cast

import pytest

from vmservice.errors import HostError
from vmservice.host.guest_listener import GuestListener, Stranger, make_socket, open_listener


def has_vsock() -> bool:
    try:
        make_socket().close()
    except OSError:
        return False
    return True


needs_vsock = pytest.mark.skipif(not has_vsock(), reason="this kernel has no AF_VSOCK")


class Accepting:
    """A listening socket, of which the next connections come from these (CID, port)."""

    def __init__(self, *peers: tuple[int, int]) -> None:
        self.peers = list(peers)
        self.ends: list[socket.socket] = []

    def setblocking(self, _flag: bool) -> None: ...

    def getsockname(self) -> tuple[int, int]:
        return 0xFFFFFFFF, 5555

    def _accept(self) -> tuple[int, tuple[int, int]]:
        if not self.peers:
            raise BlockingIOError
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return ours.detach(), self.peers.pop(0)


@pytest.mark.parametrize("peer", [(43, 1023), (2, 1023), (1, 1023), (42, 1024), (42, 0xFFFFFFFE)])
def test_others_are_hung_up_on(peer: tuple[int, int]) -> None:
    accepting = Accepting(peer)
    listener = GuestListener(cast(_socket.socket, accepting))
    listener.cid = lambda: 42
    with pytest.raises(Stranger):
        listener.accept()
    assert accepting.ends[0].recv(1) == b""
    accepting.ends[0].close()


def test_root_in_the_guest_is_heard_by_the_cid_that_it_has_now() -> None:
    accepting = Accepting((42, 1023), (43, 1))
    listener = GuestListener(cast(_socket.socket, accepting))
    for cid in (42, 43):
        listener.cid = lambda cid=cid: cid  # type: ignore[misc]
        connection = listener.accept()
        accepting.ends[-1].send(b"x")
        assert connection.recv(1) == b"x"
        connection.close()
        accepting.ends[-1].close()
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert (listener.credential, listener.address) == ("vmm.notify_socket", "vsock-stream:2:5555")


def test_before_the_guest_has_a_cid_nobody_is_it() -> None:
    accepting = Accepting((42, 1))
    with pytest.raises(Stranger):
        GuestListener(cast(_socket.socket, accepting)).accept()
    accepting.ends[0].close()


@needs_vsock
def test_each_has_a_port_of_its_own_that_is_not_privileged() -> None:
    first, second = open_listener(-1), open_listener(-1)
    ports = {int(listener.address.rpartition(":")[2]) for listener in (first, second)}
    assert len(ports) == 2
    assert min(ports) >= 1024
    assert not os.get_inheritable(first.fd)
    with pytest.raises(BlockingIOError):
        first.accept()
    first.close()
    second.close()


@needs_vsock
def test_the_socket_that_systemd_passes_is_taken() -> None:
    passed = make_socket()
    port = passed.getsockname()[1]
    listener = open_listener(passed.detach())
    assert listener.address == f"vsock-stream:2:{port}"
    listener.close()


@pytest.mark.parametrize("kind", ["no socket", "another family"])
def test_something_else_that_is_passed(kind: str) -> None:
    fd = os.open("/dev/null", os.O_RDONLY) if kind == "no socket" else socket.socket(socket.AF_UNIX).detach()
    words = "Socket operation on non-socket" if kind == "no socket" else "called vsock/notify that is no listening vsock"
    with pytest.raises(HostError, match=words):
        open_listener(fd)
    if kind == "no socket":
        os.close(fd)


def test_where_the_sandbox_has_no_vsock_the_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr("vmservice.host.guest_listener.make_socket", refuse)
    with pytest.raises(HostError, match=r'READY=1, as service\.ready = "guest" wants: Address family not supported'):
        open_listener(-1)
