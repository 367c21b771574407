"""What clients make of bus names, of properties and of errors, without a bus."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbus_next import Variant
from hypothesis import given
from hypothesis import strategies as st

from vmservice.client.bus import CallFailed, printable
from vmservice.client.units import unit_path
from vmservice.client.vms import DeviceFacts, Facts, failure, is_configured, name_of_label
from vmservice.config import names
from vmservice.config.names import config_path
from vmservice.control.names import escape_label

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(NAMES)
def test_every_name_comes_back_from_its_label(name: str) -> None:
    assert name_of_label(escape_label(name)) == name


@pytest.mark.parametrize(
    "label",
    ["", "_", "a_", "a_4", "a_zz", "a_2D", "_41", "a_1b_5bm", "_2e", "a.b", "a-b", "9x", "a" * 65, "a_ f", "a_+1"],
)
def test_a_label_that_no_vm_has_is_nobodys(label: str) -> None:
    """`_41` is A, but A escapes to itself; `_1b` would reach the terminal."""
    assert name_of_label(label) is None


@given(st.text(max_size=12))
def test_any_label_is_a_vms_or_nobodys(label: str) -> None:
    name = name_of_label(label)
    assert name is None or escape_label(name) == label


def test_facts_are_the_properties() -> None:
    said = {"State": "paused", "Name": "x", "VCPUs": 1, "MaxVCPUs": 4, "Memory": 5, "LastExit": "", "More": 1}
    assert Facts.of("demo", said) == Facts("demo", "paused", 1, 4, 5, "")


def test_devices_are_what_was_said_of_them() -> None:
    details = {
        "mode": Variant("s", "pty\x1b"),
        "size": Variant("t", 5),
        "readonly": Variant("b", True),
        "odd": Variant("as", []),
    }
    said = {"Devices": [["disk", "ro\not", details], ["short"], 7, [1, 2, {}]], "Stats": {"vcpu.exits": 7.0, "bad": "x"}}
    found = Facts.of("demo", said)
    assert found.devices == (DeviceFacts("disk", "ro?ot", {"mode": "pty?", "size": 5, "readonly": True}),)
    assert found.stats == {"vcpu.exits": 7.0}
    assert Facts.of("demo", {"Devices": "none", "Stats": 1}) == Facts("demo")


def test_a_counter_is_a_number_that_can_be_counted_to() -> None:
    said = {"zero": 0.0, "most": 2.0**64, "less": -1.0, "more": 1e300, "infinite": float("inf"), "none": float("nan"), 5: 1.0}
    assert Facts.of("demo", {"Stats": said}).stats == {"zero": 0.0, "most": 2.0**64}


def test_values_that_did_not_come_as_variants_are_no_details() -> None:
    said = [["disk", "root", {"path": "x", 5: Variant("s", "x"), "size": Variant("t", 5)}]]
    assert Facts.of("demo", {"Devices": said}).devices == (DeviceFacts("disk", "root", {"size": 5}),)
    assert Facts.of("demo", {"VCPUs": True, "Memory": 1.5}) == Facts("demo")


def test_what_is_missing_or_of_a_wrong_type_was_not_said() -> None:
    assert Facts.of("demo", {"State": 7, "VCPUs": "one", "LastExit": ["x"]}) == Facts("demo")


def test_what_others_say_cannot_steer_a_terminal() -> None:
    assert Facts.of("demo", {"State": "\x1b[2Jrunning\n"}).state == "?[2Jrunning?"
    assert len(printable("x" * 100_000)) == 2048


@pytest.fixture(autouse=True)
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VM demo has a configuration, as a user's too, and no other one has."""
    (tmp_path / "vmservice").mkdir()
    (tmp_path / "vmservice/demo.toml").touch()
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", str(tmp_path / "vmservice"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


BUS = "org.freedesktop.DBus.Error."
VM = "org.vmservice.VM1.Error."


@pytest.mark.parametrize(
    ("name", "text", "by_bus", "status", "sentence"),
    [
        (f"{BUS}ServiceUnknown", "x", True, 69, "the VM demo is not running; `systemctl start vm@demo` starts it"),
        (f"{BUS}NameHasNoOwner", "x", True, 69, "the VM demo is not running; `systemctl start vm@demo` starts it"),
        (f"{BUS}NoReply", "x", True, 69, "the VM demo ended before it answered"),
        (
            f"{BUS}AccessDenied",
            "x",
            True,
            77,
            "this account may not Pause the VM demo; root and members of group vmservice may",
        ),
        (f"{BUS}AccessDenied", "polkit says no", False, 77, "polkit says no"),
        (f"{BUS}AccessDenied", "", False, 77, "this account may not Pause the VM demo"),
        (f"{BUS}InteractiveAuthorizationRequired", "ask", False, 77, "ask"),
        (f"{VM}InvalidStateTransition", "from here to there", False, 1, "from here to there"),
        (f"{VM}InvalidArgument", "9 is too many", False, 1, "9 is too many"),
        (f"{VM}Busy", "later", False, 1, "later"),
        (f"{VM}NotSupported", "cannot", False, 1, "cannot"),
        (f"{VM}GuestNotResponding", "it has 2", False, 75, "it has 2"),
        (f"{VM}OfTheFuture", "", False, 1, f"the VM demo refused: {VM}OfTheFuture"),
        (f"{VM}Failed", "cannot run vCPU 0: errno 12", False, 71, "cannot run vCPU 0: errno 12"),
        (f"{BUS}UnknownMethod", "no such", False, 1, "the VM demo could not be asked to Pause: no such"),
        (f"{BUS}ServiceUnknown", "forged", False, 1, "the VM demo could not be asked to Pause: forged"),
    ],
)
def test_errors_become_a_sentence_and_a_status(name: str, text: str, by_bus: bool, status: int, sentence: str) -> None:
    bus: Any = SimpleNamespace(user=False)
    error = failure(bus, "demo", "Pause", CallFailed(name, text, by_bus=by_bus))
    assert (error.exit_status, str(error)) == (status, sentence)


def test_a_users_vm_is_started_by_the_users_systemd() -> None:
    bus: Any = SimpleNamespace(user=True)
    error = failure(bus, "demo", "Pause", CallFailed(f"{BUS}ServiceUnknown", "", by_bus=True))
    assert "`systemctl --user start vm@demo`" in str(error)


@pytest.mark.parametrize("user", [False, True])
def test_nobody_is_told_to_start_what_has_no_configuration(user: bool) -> None:
    bus: Any = SimpleNamespace(user=user)
    error = failure(bus, "nosuch", "Pause", CallFailed(f"{BUS}ServiceUnknown", "", by_bus=True))
    path = config_path("nosuch", user=user)
    assert str(error) == f"the VM nosuch does not exist: it does not run, and there is no {path}"
    assert error.exit_status == 69


def test_what_this_account_cannot_see_may_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SYSTEM_DIRECTORY", f"/{'x' * 300}")
    assert is_configured("nosuch", user=False)


def test_the_path_of_a_unit_is_systemds() -> None:
    """As `busctl tree org.freedesktop.systemd1` shows them."""
    assert unit_path("vm@web-1.service") == "/org/freedesktop/systemd1/unit/vm_40web_2d1_2eservice"
