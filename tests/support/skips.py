"""A pytest plugin that keeps skipped tests honest: a skip that this list does not expect fails the run.

An expected skip says what this machine lacks, and the lack is looked at again here: a test cannot be skipped for a reason that
is not so.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Generator

import pytest

HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
KSM = "/sys/kernel/mm/ksm/run"


def _has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


# (what the reason says, whether that is so on this machine).
EXPECTED: tuple[tuple[str, Callable[[], bool]], ...] = (
    (r"no usable /dev/kvm on this machine", lambda: not os.access("/dev/kvm", os.R_OK | os.W_OK)),
    (r"only root .*", lambda: os.geteuid() != 0),
    (r"huge pages of 2 MiB cannot be made on this machine", lambda: not os.access(HUGE_PAGES, os.W_OK)),
    (r"KSM cannot be run on this machine", lambda: not os.access(KSM, os.W_OK)),
    (r"this kernel has no AF_VSOCK", lambda: not _has_vsock()),
    (r"this machine has no loop devices", lambda: not os.path.exists("/dev/loop-control")),
    (r"no /dev/vhost-vsock here", lambda: not os.path.exists("/dev/vhost-vsock")),
    (r"this machine has no FUSE", lambda: not os.path.exists("/dev/fuse")),
    (r"this machine has no taps", lambda: not os.path.exists("/dev/net/tun")),
    (r"qemu-io is not installed", lambda: shutil.which("qemu-io") is None),
    # `make test` installs what tests need; whoever runs pytest alone may lack it.
    (r".* not installed|no C compiler .*|.* is built with binutils, and .* cannot be found", lambda: os.geteuid() != 0),
)


def is_expected(reason: str) -> bool:
    """Whether some line of EXPECTED matches all of `reason`, and holds on this machine."""
    return any(re.fullmatch(pattern, reason) and holds() for pattern, holds in EXPECTED)


class SkipGate:
    """Collects the skips of a session and judges them at its end."""

    def __init__(self) -> None:
        self.unexpected: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._judge(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._judge(report.nodeid, report.longrepr)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None]:
        yield
        if self.unexpected and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexpected:
            terminalreporter.section("skipped, and not expected on this machine", red=True)
            for nodeid, reason in self.unexpected:
                terminalreporter.line(f"{nodeid}: {reason}")

    def _judge(self, nodeid: str, longrepr: object) -> None:
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = str(reason).removeprefix("Skipped: ")
        if not is_expected(reason):
            self.unexpected.append((nodeid, reason))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipGate(), "skip-gate")
