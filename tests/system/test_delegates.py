"""Who is neither root nor a member of anything: the password typed at the terminal, and the rules of the examples, by the real
polkit with its own agent."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

TYPED = Path(__file__).parents[1] / "support" / "typed.py"
EXAMPLES = "/usr/share/doc/vmservice/examples"
PASSWORD = "correct horse"


@pytest.fixture
def web(container: Container) -> Iterator[UnitVm]:
    """A VM called web; carol is an administrator with a password, bob a member of the group."""
    container.run("useradd --groups vmservice bob && useradd --create-home --groups sudo carol", check=True)
    container.run("chpasswd", check=True, stdin=f"carol:{PASSWORD}\n".encode())
    vm = UnitVm(container, "web")
    vm.configure(firmware_config())
    vm.start()
    yield vm
    vm.remove()
    container.run("userdel bob; userdel vm-web-1; loginctl terminate-user carol", check=False)
    container.run("timeout 30 sh -c 'while pgrep -u carol > /dev/null; do sleep 0.1; done'; userdel --remove carol", check=True)


def typed(vm: UnitVm, answer: str, *command: str) -> tuple[int, str]:
    """Exit status and screen of carol's command, who types `answer` when she is asked for her password."""
    (vm.host.shared / "typed.py").write_text(TYPED.read_text())  # type: ignore[attr-defined]
    # A log-in: polkit takes an agent that only fills in (--fallback) for processes of a session alone.
    become = ["su", "--login", "carol", f"--session-command={shlex.join(command)}"]
    line = shlex.join(["python3", "/lab/typed.py", "Password:", answer, *become])
    done = vm.host.run(line, timeout=90)
    return done.returncode, done.stdout


def agents(vm: UnitVm) -> str:
    return vm.host.run("pgrep -a pkttyagent").stdout


@every_release
def test_a_person_types_the_password(web: UnitVm) -> None:
    status, screen = typed(web, PASSWORD, "vmservice", "pause", "web")
    assert status == 0, screen
    assert "==== AUTHENTICATING FOR org.vmservice.vm1.pause" in screen
    assert "Authentication is required to pause the virtual machine web." in screen
    assert "==== AUTHENTICATION COMPLETE" in screen
    assert PASSWORD not in screen
    assert web.state == "paused"
    assert agents(web) == ""


@every_release
def test_a_wrong_password_and_none_at_all(web: UnitVm) -> None:
    status, screen = typed(web, "wrong", "vmservice", "pause", "web")
    assert status == 77, screen
    assert "==== AUTHENTICATION FAILED" in screen
    assert screen.rstrip().endswith("vmservice: org.vmservice.vm1.pause is not authorized")
    status, screen = typed(web, PASSWORD, "vmservice", "--no-ask-password", "pause", "web")
    assert status == 77, screen
    assert "AUTHENTICATING" not in screen
    assert web.state == "running"
    assert agents(web) == ""


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
    web.host.run("useradd --groups vmservice vm-web-1", check=True)
    with rule(web.host, "vmservice-group.rules"):  # type: ignore[arg-type]
        assert outcomes(web, "bob", *units, *others) == [True] * 3 + [False] * 3
        assert outcomes(web, "alice", *units) == [False] * 3
        for vms in ("vmservice", "vmservice-manager", "vm-web-1"):
            assert outcomes(web, vms, *units) == [False] * 3, f"{vms} is an account of VMs, or of who shows them"
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
