"""One VM as a unit of a real systemd, from start to every kind of end. The guest is the heartbeat payload."""

from __future__ import annotations

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config


@every_release
def test_started_it_is_active_on_the_bus_and_says_what_it_is(vm: UnitVm) -> None:
    vm.start()

    assert vm.show("ActiveState") == "active"
    assert vm.show("StatusText") == "running; 1 vCPU, 64 MiB"
    assert vm.state == "running"
    assert vm.get("Name") == vm.name


@every_release
def test_the_console_is_in_the_journal_under_its_own_name(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 2")

    fields = vm.journal("--output=json", f"SYSLOG_IDENTIFIER=vm-{vm.name}")
    assert f'"VM_NAME":"{vm.name}"' in fields
    assert '"VM_CONSOLE":"serial"' in fields


@every_release
def test_changes_of_state_are_messages_of_the_catalog(vm: UnitVm) -> None:
    vm.start()
    vm.call("Pause")
    vm.host.run("journalctl --sync")

    explained = vm.journal("--catalog", "VM_STATE=paused")
    assert f"Subject: VM {vm.name} paused" in explained


def test_pause_stops_the_heartbeat_and_resume_continues_it(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 2")
    vm.call("Pause")
    vm.host.run("sleep 1; journalctl --sync")  # what was printed before is on its way
    beats = vm.journal().count("beat")

    # A tick of another clock: a second in which a running guest would beat ten times.
    vm.host.run("sleep 1; journalctl --sync")
    assert vm.journal().count("beat") == beats
    vm.call("Resume")
    vm.wait_for(f"beat {beats + 2}$")


@every_release
def test_stop_presses_the_power_button(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 1")
    vm.stop()

    assert "power button" in vm.journal()
    assert vm.show("Result") == "success"
    assert vm.show("ActiveState") == "inactive"


@every_release
def test_stop_resumes_a_paused_guest_first(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 1")
    vm.call("Pause")
    vm.stop()

    assert "power button" in vm.journal()
    assert vm.show("Result") == "success"


@every_release
def test_a_guest_that_does_not_answer_is_forced(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 1"))
    vm.start()
    vm.stop()

    assert vm.show("Result") == "success"
    assert "forced the VM to stop" in vm.journal("--output=cat", "--priority=warning")


@every_release
def test_a_second_sigterm_forces_at_once(vm: UnitVm) -> None:
    vm.configure(firmware_config("deaf"))
    vm.start()
    vm.host.run(f"systemctl stop --no-block {vm.unit}", check=True)
    vm.wait_for("asked the guest to power off")
    vm.host.run(f"systemctl kill --signal=TERM {vm.unit}", check=True)
    vm.wait_inactive()

    assert vm.show("Result") == "success"
    assert "forced the VM to stop" in vm.journal("--output=cat", "--priority=warning")


@every_release
def test_a_slow_guest_gets_more_time_than_the_unit_has(vm: UnitVm) -> None:
    """EXTEND_TIMEOUT_USEC: without it systemd would kill the VMM after a second."""
    vm.configure(firmware_config("deaf", service="shutdown_timeout = 3"))
    with vm.drop_in("TimeoutStopSec=1"):
        vm.start()
        vm.stop()
        assert vm.show("Result") == "success"
    assert "within 3 seconds" in vm.journal()


@every_release
def test_a_reset_may_start_the_unit_anew(vm: UnitVm) -> None:
    vm.configure(firmware_config("reset", service='on_reset = "exit"'))
    vm.host.run(f"systemctl start --no-block {vm.unit}", check=True)
    vm.host.run(f"timeout 50 sh -c 'until [ $(systemctl show -P NRestarts {vm.unit}) -ge 3 ]; do sleep 0.1; done'", check=True)


@every_release
def test_a_panic_starts_the_unit_anew(vm: UnitVm) -> None:
    vm.configure(firmware_config("panic"))
    vm.host.run(f"systemctl start --no-block {vm.unit}", check=True)
    vm.host.run(f"timeout 50 sh -c 'until [ $(systemctl show -P NRestarts {vm.unit}) -ge 2 ]; do sleep 0.1; done'", check=True)
    journal = vm.journal()
    assert "status=134" in journal
    assert "the guest panicked; VM shut down" in journal


def test_a_reload_brings_another_policy_for_a_panic(vm: UnitVm) -> None:
    """The guest panics as soon as it is started: it is paused first, and shut down after the reload."""
    vm.configure(firmware_config("panic", service='on_panic = "pause"'))
    vm.start()
    vm.wait_for("VM paused")
    assert (vm.state, vm.get("LastExit")) == ("paused", "panic")
    vm.configure(firmware_config("panic", service='on_panic = "exit"'))
    vm.host.run(f"systemctl reload {vm.unit}", check=True)
    vm.call("Reboot")
    vm.wait_for("the guest panicked; VM shut down")


def test_a_guest_paused_by_its_panic_is_not_waited_for(vm: UnitVm) -> None:
    vm.configure(firmware_config("panic", service='on_panic = "pause"'))
    vm.start()
    vm.wait_for("VM paused")
    vm.stop(timeout=60)
    assert "forced the VM to stop: the guest has panicked" in vm.journal()
    assert vm.show("Result") == "success"


@every_release
def test_a_guest_that_powers_off_ends_the_unit_cleanly(vm: UnitVm) -> None:
    vm.start()
    vm.wait_for("beat 1")
    vm.call("PowerButton")
    vm.wait_inactive()

    assert vm.show("Result") == "success"
    assert vm.show("NRestarts") == "0"


def test_a_guest_that_powers_off_may_leave_the_process(vm: UnitVm) -> None:
    vm.configure(firmware_config(service='on_poweroff = "stay"'))
    vm.start()
    vm.wait_for("beat 1")
    vm.call("PowerButton")
    vm.wait_for("VM shut down")

    assert (vm.state, vm.get("LastExit")) == ("shutdown", "poweroff")
    vm.call("Boot")
    assert vm.state == "running"


@every_release
def test_a_guest_that_is_done_at_once_is_a_clean_end(vm: UnitVm) -> None:
    """Before the bus name is owned: to systemd an end without READY=1 would be a failure of the protocol."""
    vm.configure(firmware_config("off"))
    for _ in range(10):
        vm.start()
        vm.wait_inactive()
        assert vm.show("Result") == "success"
    assert vm.journal().count("VM shut down (poweroff)") == 10


def test_twenty_restarts(vm: UnitVm) -> None:
    vm.start()
    for _ in range(20):
        vm.wait_for("beat 1")
        vm.restart()
    assert vm.state == "running"
    assert vm.journal().count("power button") == 20


@every_release
def test_the_bus_may_restart_under_a_vm(own_container: Container) -> None:
    vm = UnitVm(own_container, "demo")
    vm.configure(firmware_config())
    vm.start()
    pid = vm.main_pid()
    vm.host.run("systemctl restart dbus.service", check=True)
    vm.wait_on_bus()

    assert vm.main_pid() == pid
    assert vm.state == "running"
    vm.stop()
    assert vm.show("Result") == "success"


@every_release
def test_a_name_with_other_characters_is_escaped_as_systemd_does(container: Container) -> None:
    vm = UnitVm(container, "9web-1.x_y")
    vm.configure(firmware_config())
    try:
        vm.start()
        assert vm.get("Name") == "9web-1.x_y"
        assert "org.vmservice.VM1._39web_2d1_2ex_5fy" in container.run("busctl list", check=True).stdout
    finally:
        vm.remove()


@every_release
def test_the_process_can_do_next_to_nothing(vm: UnitVm) -> None:
    vm.start()
    status = vm.host.run(f"cat /proc/{vm.main_pid()}/status", check=True).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    account = vm.host.run("id -u vmservice", check=True).stdout.strip()

    assert fields["Uid"].split() == [account] * 4
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


@every_release
def test_its_folders_are_its_own(vm: UnitVm) -> None:
    vm.start()
    for folder in ("/run", "/var/lib", "/var/log"):
        owner = vm.host.run(f"stat --format=%U {folder}/vmservice/{vm.name}", check=True).stdout.strip()
        assert owner == "vmservice", folder


def test_a_hung_vmm_is_noticed_by_the_watchdog(vm: UnitVm) -> None:
    with vm.drop_in("WatchdogSec=4\nRestart=no"):
        vm.start()
        vm.wait_for("beat 60$")
        assert vm.show("ActiveState") == "active"
        vm.host.run(f"kill -STOP {vm.main_pid()}", check=True)
        vm.wait_inactive()
        assert vm.show("Result") == "watchdog"


@every_release
@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("[kernel\n", 78, ".toml"),
        ('[kernel]\npath = "/lab/none"\n[memory]\nsize = "64M"\n', 78, "/lab/none"),
        ('[firmware]\npath = "/lab/beat.bin"\n[memory]\nsiez = "64M"\n', 78, "size"),
    ],
    ids=["no TOML", "no kernel", "unknown key"],
)
def test_a_bad_configuration_fails_with_one_sentence(vm: UnitVm, text: str, status: int, says: str) -> None:
    vm.configure(text)
    refused = vm.host.run(f"systemctl start {vm.unit}")

    assert refused.returncode != 0
    assert vm.show("ExecMainStatus") == str(status)
    sentences = [line for line in vm.journal("--output=cat", "SYSLOG_IDENTIFIER=vmservice").splitlines() if says in line]
    assert len(sentences) == 1
    assert "Traceback" not in vm.journal()


@every_release
def test_sockets_on_a_host_that_has_none_are_said_so(vm: UnitVm) -> None:
    vm.configure(firmware_config() + "[vsock]\n")
    assert vm.host.run(f"systemctl start {vm.unit}").returncode != 0
    assert vm.show("ExecMainStatus") == "69"
    said = vm.journal("--output=cat", "SYSLOG_IDENTIFIER=vmservice")
    assert "[vsock] needs /dev/vhost-vsock, which this host does not have (No such file or directory); `modprobe" in said
    assert "Traceback" not in said


@every_release
def test_no_configuration_is_said_so_and_is_no_failed_unit(container: Container) -> None:
    refused = container.run("systemctl start vm@nobody")
    assert refused.returncode != 0
    assert "Assertion failed" in refused.stderr
    assert container.run("systemctl is-failed vm@nobody").stdout.strip() == "inactive"


def test_without_access_to_kvm_it_says_so(vm: UnitVm) -> None:
    refused = vm.host.run(f"runuser -u nobody -- vmservice run --bus none {vm.name}")
    assert refused.returncode == 77
    assert "/dev/kvm" in refused.stderr
