"""A process that was begun without a network enters the one that another process has."""

from __future__ import annotations

import os

import pytest
from support.net_space import make_tap, net_space

from vmservice.errors import HostError
from vmservice.host import host_network
from vmservice.host.interfaces import look_at


def test_another_namespace_is_entered() -> None:
    with net_space():
        make_tap("vt-web")
        outer = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        with net_space():
            assert look_at("vt-web") is None
            host_network.enter(f"/proc/self/fd/{outer}")
            assert look_at("vt-web") is not None
        os.close(outer)


def test_what_is_no_namespace() -> None:
    with pytest.raises(HostError, match="cannot enter the host's network namespace: No such file or directory"):
        host_network.enter("/proc/self/ns/none")
