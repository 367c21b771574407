"""Who may do what with a VM, by the real polkitd and bus: account × verb, without a rule, with one, and without polkit."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import INTERFACE, OBJECT, UnitVm, firmware_config

# In an order in which each succeeds when all may be done; the guest does not heed its power button.
VERBS = {
    "Pause": "",
    "Resume": "",
    "Resize": "y 1",
    "PowerButton": "",
    "Reboot": "",
    "Shutdown": "",
    "Boot": "",
}

ACCOUNTS = {
    "root": "",
    "a member of the group": "runuser -u bob --",
    "a user": "runuser -u alice --",
    "nobody": "runuser -u nobody --",
    "the account of VMs": "runuser -u vmservice --",
}
TRUSTED = {"root", "a member of the group"}

DENIED = "Call failed: Access denied"  # busctl's words for org.freedesktop.DBus.Error.AccessDenied

RULES = "/etc/polkit-1/rules.d/50-test.rules"
PAUSE_RULE = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.vmservice.vm1.pause" && action.lookup("vm") == "guarded" && subject.user == "alice")
        return polkit.Result.YES;
});
"""


@pytest.fixture
def guarded(container: Container) -> Iterator[UnitVm]:
    container.run("useradd --groups vmservice bob", check=True)
    vm = UnitVm(container, "guarded")
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 0"))
    vm.start()
    yield vm
    vm.remove()
    container.run("userdel bob", check=True)


@contextlib.contextmanager
def rule(host: Container, text: str) -> Iterator[None]:
    """polkit with one rule more; it is restarted, lest it still looks at the folder when it is asked."""
    host.run(
        f"cat > {RULES} && chmod 644 {RULES} && systemctl reset-failed polkit && systemctl restart polkit",
        check=True,
        stdin=text.encode(),
    )
    try:
        yield
    finally:
        host.run(f"rm {RULES} && systemctl reset-failed polkit && systemctl restart polkit", check=True)


@contextlib.contextmanager
def no_polkit(host: Container) -> Iterator[None]:
    host.run("systemctl mask --now --runtime polkit.service", check=True)
    try:
        yield
    finally:
        host.run("systemctl unmask --runtime polkit.service", check=True)


def outcomes(vm: UnitVm, account: str, *options: str) -> dict[str, str]:
    """What each verb led to when `account` called it: `done`, or what busctl says."""
    calls = []
    for verb, arguments in VERBS.items():
        command = f"busctl {shlex.join(options)} call {vm.bus_name} {OBJECT} {INTERFACE} {verb} {arguments}"
        calls.append(f'said=$({ACCOUNTS[account]} {command} 2>&1 < /dev/null) && said=done; echo "{verb}=$said"')
    lines = vm.host.run("; ".join(calls), check=True, timeout=300).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def action(verb: str) -> str:
    return "org.vmservice.vm1." + {"PowerButton": "power-button"}.get(verb, verb.lower())


@every_release
@pytest.mark.parametrize("account", ACCOUNTS)
def test_without_a_rule(guarded: UnitVm, account: str) -> None:
    """busctl allows interaction, and there is nobody to interact with."""
    for verb, outcome in outcomes(guarded, account).items():
        assert outcome == ("done" if account in TRUSTED else DENIED), verb
    assert guarded.state == "running"


@every_release
@pytest.mark.parametrize("account", ["a user", "nobody"])
def test_where_a_call_allows_no_interaction(guarded: UnitVm, account: str) -> None:
    for verb, outcome in outcomes(guarded, account, "--allow-interactive-authorization=no").items():
        assert outcome == f"Call failed: {action(verb)} needs interactive authentication, which the call does not allow"


@every_release
@pytest.mark.parametrize("account", ACCOUNTS)
def test_with_a_rule_for_one_user_and_one_verb(guarded: UnitVm, account: str) -> None:
    with rule(guarded.host, PAUSE_RULE):  # type: ignore[arg-type]
        for verb, outcome in outcomes(guarded, account).items():
            allowed = account in TRUSTED or (account == "a user" and verb == "Pause")
            assert (outcome == "done") == allowed, (verb, outcome)
    assert guarded.state == ("paused" if account == "a user" else "running")


@every_release
@pytest.mark.parametrize("account", ACCOUNTS)
def test_without_polkit(guarded: UnitVm, account: str) -> None:
    with no_polkit(guarded.host):  # type: ignore[arg-type]
        for verb, outcome in outcomes(guarded, account).items():
            assert outcome == ("done" if account in TRUSTED else DENIED), verb
    assert guarded.state == "running"


def test_polkit_stopped_in_its_tracks(guarded: UnitVm) -> None:
    """A polkitd that neither answers nor ends: the trusted are served, strangers wait for a refusal, and all may look."""
    host = guarded.host
    host.run("systemctl reset-failed polkit; systemctl start polkit && systemctl kill --signal=STOP polkit", check=True)
    try:
        call = f"busctl --timeout=60 --allow-interactive-authorization=no call {guarded.bus_name} {OBJECT} {INTERFACE} Pause"
        host.run(f"systemd-run --unit=waits --uid=alice --collect --pipe {call} > /tmp/said 2>&1 &", check=True)
        host.run("timeout 50 sh -c 'until systemctl is-active --quiet waits; do sleep 0.1; done'", check=True)
        guarded.call("Pause")
        assert guarded.state == "paused"
        host.run("timeout 60 sh -c 'while systemctl is-active --quiet waits; do sleep 0.1; done'", check=True, timeout=90)
        assert DENIED in host.run("cat /tmp/said").stdout
        assert "polkit cannot be asked: it did not answer within 30 seconds" in guarded.journal()
    finally:
        host.run(
            "systemctl kill --signal=CONT polkit; systemctl reset-failed polkit; systemctl restart polkit; systemctl stop waits"
        )
