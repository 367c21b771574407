"""Who is neither root nor a member of anything: the rules of the examples, by the real polkit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

EXAMPLES = "/usr/share/doc/vmservice/examples"


@pytest.fixture
def web(container: Container) -> Iterator[UnitVm]:
    """A VM called web; bob is a member of the group."""
    container.run("useradd --groups vmservice bob", check=True)
    vm = UnitVm(container, "web")
    vm.configure(firmware_config())
    vm.start()
    yield vm
    vm.remove()
    container.run("userdel bob", check=True)


@contextlib.contextmanager
def rule(host: Container, name: str) -> Iterator[None]:
    """With one of the examples in force; polkit is restarted, lest it still looks at the folder when it is asked."""
    again = "systemctl reset-failed polkit; systemctl restart polkit"
    host.run(f"install -m 644 {EXAMPLES}/{name} /etc/polkit-1/rules.d/ && {again}", check=True)
    try:
        yield
    finally:
        host.run(f"rm /etc/polkit-1/rules.d/{name}; {again}", check=True)


def outcomes(vm: UnitVm, account: str, *commands: str) -> list[bool]:
    return [vm.host.run(f"runuser -u {account} -- {command}", timeout=90).returncode == 0 for command in commands]


@every_release
def test_the_rule_for_the_group(web: UnitVm) -> None:
    ask = "--no-ask-password"
    units = [f"vmservice {ask} restart web", f"vmservice {ask} stop web", f"vmservice {ask} start web"]
    others = [
        f"systemctl {ask} restart systemd-logind",
        f"systemctl {ask} kill vm@web",
        f"systemctl {ask} set-property vm@web TasksMax=99",
    ]
    assert outcomes(web, "bob", *units, *others) == [False] * 6
    with rule(web.host, "vmservice-group.rules"):  # type: ignore[arg-type]
        assert outcomes(web, "bob", *units, *others) == [True] * 3 + [False] * 3
        assert outcomes(web, "alice", *units) == [False] * 3
    assert web.state == "running"


@every_release
def test_the_rule_for_one_person_and_one_vm(web: UnitVm) -> None:
    ask = "--no-ask-password"
    hers = [f"vmservice {ask} {words}" for words in ("pause web", "resume web", "restart web")]
    others = [f"systemctl {ask} restart systemd-logind", f"systemctl {ask} start vm@other"]
    assert outcomes(web, "alice", *hers, *others) == [False] * 5
    with rule(web.host, "vmservice-one-vm.rules"):  # type: ignore[arg-type]
        assert outcomes(web, "alice", *hers, *others) == [True] * 3 + [False] * 2
        assert outcomes(web, "bob", *hers) == [True, True, False]
    assert web.state == "running"
