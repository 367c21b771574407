"""docs/threat-model.md, claim by claim: what a VMM that its guest has taken over can reach; and VMs with their own accounts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.container import Container
from support.releases import every_release
from support.unit_vm import INTERFACE, OBJECT, UnitVm, firmware_config

EXAMPLES = "/usr/share/doc/vmservice/examples"
ACCOUNTS = (Path(__file__).parents[2] / "docs/accounts.md").read_text()
ATTACKER = Path(__file__).parents[1] / "support/attacker.py"

_SECRETS = """
set -e
for directory in /var/lib /var/log; do
    echo secret | install -o vmservice -m 600 /dev/stdin $directory/vmservice/victim/secret
done
install -o vmservice -m 600 /var/lib/vmservice/victim/secret /var/lib/vmservice/victim/image
install -m 644 /var/lib/vmservice/victim/image /tmp/secret
install -o alice -m 644 /var/lib/vmservice/victim/image /home/alice/secret
chmod 755 /home/alice
install -o vmservice -m 600 /tmp/secret /dev/shm/victim
[ -c /dev/open-to-all ] || mknod -m 666 /dev/open-to-all c 1 5
"""

# What the sandbox must let through, for the rest to say something.
NEEDED = {"own state", "own signals", "kvm", "the bus"}
# What docs/threat-model.md says is not protected where the account is shared.
SHARED = {
    "take the name of a VM that does not run",
    "open a pseudoterminal",
    "read a named file of memory",
    "name another VM in the journal",
}
SIGNALS = {"kill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo"}


def attack(host: Container, victim: UnitVm, *options: str) -> dict[str, str]:
    """The attacker's report, run as the VM `demo` in the sandbox of the unit."""
    (host.shared / "attacker.py").write_bytes(ATTACKER.read_bytes())
    pid = victim.main_pid()
    address = host.run(f"head -n 1 /proc/{pid}/maps", check=True).stdout.partition("-")[0]
    command = shlex.join(["/usr/bin/python3", "-IS", "/lab/attacker.py", victim.name, str(pid), address, *options])
    # The VM demo needs no configuration for that: without one the unit would not start.
    lines = "[Unit]\nAssertPathExists=\n[Service]\nType=oneshot\nExecStartPost=\nExecStopPost=\nWatchdogSec=0\n"
    lines += f"ExecStart=\nExecStart={command}\n"
    lines += "Restart=no\nRestartForceExitStatus=\n"  # systemd 252 has neither for this type
    lines += "StandardOutput=truncate:/run/said\nStandardError=journal\n"
    try:
        with UnitVm(host, "demo").drop_in(lines):
            host.run("systemctl start vm@demo.service || { journalctl --unit=vm@demo.service; exit 1; }", check=True)
            report: dict[str, str] = json.loads(host.run("cat /run/said", check=True).stdout)
    finally:
        host.run("systemctl reset-failed vm@demo.service")
    return report


@pytest.fixture(scope="module")
def victim(container: Container) -> Iterator[UnitVm]:
    vm = UnitVm(container, "victim")
    memory = 'size = "64M"\nshared = true'
    text = firmware_config().replace('mode = "journal"', 'mode = "socket"').replace('size = "64M"', memory)
    vm.configure(text + '[console]\nmode = "pty"\n')
    vm.start()
    container.run(_SECRETS, check=True)
    yield vm
    vm.remove()
    container.run("rm -rf /dev/open-to-all /dev/shm/victim /tmp/secret /home/alice/secret /var/lib/vmservice/victim/image")


@pytest.fixture(scope="module")
def report(container: Container, victim: UnitVm) -> dict[str, str]:
    return attack(container, victim)


@every_release
def test_a_taken_over_vmm_reaches_nothing_of_the_host_or_of_another_vm(report: dict[str, str], victim: UnitVm) -> None:
    assert {name for name, outcome in report.items() if outcome == "done"} == NEEDED | SHARED, report
    assert victim.state == "running"


@every_release
def test_a_socket_of_a_forbidden_family_is_refused_for_its_family(report: dict[str, str]) -> None:
    families = {outcome for name, outcome in report.items() if name.startswith("socket ")}
    assert families == {"EAFNOSUPPORT"}


@every_release
def test_without_landlock_signals_pass_between_vms_of_one_account_and_nothing_else_does(
    container: Container, victim: UnitVm
) -> None:
    """Linux before 6.12: what docs/threat-model.md says does not hold there."""
    report = attack(container, victim, "--unconfined")
    assert {name for name, outcome in report.items() if outcome == "done"} == NEEDED | SHARED | SIGNALS, report
    assert victim.state == "running"


@every_release
def test_a_forged_line_in_the_journal_still_says_who_wrote_it(report: dict[str, str], victim: UnitVm) -> None:
    assert report["name another VM in the journal"] == "done"
    found = victim.host.run("journalctl --output=json MESSAGE=forged", check=True).stdout.splitlines()
    assert {json.loads(line)["_SYSTEMD_UNIT"] for line in found} == {"vm@demo.service"}


@every_release
def test_a_member_of_the_group_controls_and_reads_logs_and_no_more(victim: UnitVm) -> None:
    host = victim.host
    host.run("usermod --append --groups vmservice alice", check=True)
    try:
        host.run(f"runuser -u alice -- busctl call {victim.bus_name} {OBJECT} {INTERFACE} Pause", check=True)
        host.run(f"runuser -u alice -- busctl call {victim.bus_name} {OBJECT} {INTERFACE} Resume", check=True)
        host.run("runuser -u alice -- ls /var/log/vmservice/victim", check=True)
        for command in (
            "cat /var/lib/vmservice/victim/image",
            "ls /run/vmservice/victim",
            f"cat /proc/{victim.main_pid()}/environ",
            f"kill -0 {victim.main_pid()}",
            "systemctl --no-ask-password stop vm@victim",
            "tee -a /etc/vmservice/victim.toml < /dev/null",
        ):
            assert host.run(f"runuser -u alice -- {command}").returncode != 0, command
    finally:
        host.run("gpasswd --delete alice vmservice", check=True)


def test_the_vmm_confines_itself(victim: UnitVm) -> None:
    """Landlock has no file in /proc; that it was asked to, no_new_privs and the attacker's own call show."""
    status = victim.host.run(f"cat /proc/{victim.main_pid()}/status", check=True).stdout.split()
    assert status[status.index("NoNewPrivs:") + 1] == "1"
    assert int(status[status.index("CapBnd:") + 1], 16) == 0


@every_release
def test_an_account_out_of_descriptors_trusts_nobody(victim: UnitVm) -> None:
    """The VM cannot read /etc/passwd then, and must not take another VM for itself."""
    host = victim.host
    call = f"runuser -u vmservice -- busctl call {victim.bus_name} {OBJECT} {INTERFACE} Pause"
    limits = host.run(f"prlimit --nofile --noheadings --output SOFT,HARD --pid {victim.main_pid()}", check=True).stdout.split()
    host.run(f"prlimit --nofile=1:{limits[1]} --pid {victim.main_pid()}", check=True)
    try:
        assert "Access denied" in host.run(call).stderr
        assert victim.state == "running"
    finally:
        host.run(f"prlimit --nofile={limits[0]}:{limits[1]} --pid {victim.main_pid()}", check=True)


@every_release
@pytest.mark.parametrize(
    ("memory", "serial"),
    [
        ("", 'mode = "journal"'),
        ('file = "/dev/shm"', 'mode = "pty"'),
        ('file = "/dev/shm/ram"', 'mode = "file"\npath = "/var/log/vmservice/{name}/console.log"'),
        ('file = "/var/lib/vmservice/{name}"', 'mode = "null"'),
        ("mergeable = true", 'mode = "off"'),
        ("shared = true\nprefault = true", 'mode = "socket"'),
    ],
)
def test_the_sandbox_breaks_no_memory_and_no_console(vm: UnitVm, memory: str, serial: str) -> None:
    text = firmware_config().replace("boot = 1", "boot = 1\nmax = 2")
    text = text.replace('mode = "journal"', serial).replace('size = "64M"', f'size = "64M"\n{memory}')
    vm.configure(text.replace("{name}", vm.name))
    vm.host.run("install -o vmservice -m 600 /dev/null /dev/shm/ram", check=True)
    try:
        vm.start()
        vm.call("Pause")
        vm.call("Resume")
        vm.call("Reboot")
        assert vm.state == "running"
        if "console.log" in serial:
            vm.host.run(
                f"timeout 50 sh -c 'until grep -q beat /var/log/vmservice/{vm.name}/console.log; do sleep 0.1; done'",
                check=True,
            )
        if "pty" in serial:
            vm.host.run(f"test -c /run/vmservice/{vm.name}/serial", check=True)
    finally:
        vm.host.run("rm -f /dev/shm/ram")


def owners(vm: UnitVm) -> list[str]:
    """Whose its process is, and its directory."""
    return vm.host.run(f"stat --format=%U /proc/{vm.main_pid()} /var/lib/vmservice/{vm.name}", check=True).stdout.split()


@every_release
def test_a_vm_with_an_account_of_its_own(container: Container, victim: UnitVm) -> None:
    """As docs/accounts.md has it, word by word, and undone again."""
    made, undone = ACCOUNTS.split("## One VM", 1)[1].split("```\n")[1:4:2]
    undo = f"{made.splitlines()[0]}\n{undone}"
    web, host = UnitVm(container, "web-1"), container
    log = "/var/log/vmservice/web-1/console.log"
    console = f'[console]\nmode = "socket"\nlog = "file"\nlog_path = "{log}"\n'
    web.configure(firmware_config() + console)
    try:
        host.run(f"set -e\n{made}", check=True)
        web.wait_for("beat 1")
        host.run(f"echo before > {log} && logrotate --force /etc/logrotate.conf", check=True)
        host.run(f"timeout 60 sh -c 'until test -e {log}; do sleep 0.1; done'", check=True)
        assert host.run(f"stat --format=%U {log} {log}.1 && cat {log}.1", check=True).stdout == "vm-web-1\nvm-web-1\nbefore\n"
        assert owners(web) == ["vm-web-1", "vm-web-1"]
        web.call("Pause")
        assert web.state == "paused"

        def refused(user: str, command: str) -> bool:
            return host.run(f"runuser -u {user} -- {command}").returncode != 0

        pause = f"busctl call {victim.bus_name} {OBJECT} {INTERFACE} Pause"
        name = "busctl call org.freedesktop.DBus / org.freedesktop.DBus RequestName su org.vmservice.VM1."
        assert refused("vm-web-1", pause)
        assert refused("vm-web-1", f"kill -0 {victim.main_pid()}")
        assert refused("vm-web-1", "cat /var/lib/vmservice/victim/image")
        assert refused("vm-web-1", f"{name}other 4")
        assert refused("vmservice", f"{name}web_2d1 4"), "a VM of the shared account takes the name"
        assert not refused("vmservice", f"{name}other 4"), "the shared account's names are its VMs'"
        assert refused("vmservice", f"busctl call {web.bus_name} {OBJECT} {INTERFACE} Resume")
        assert refused("vmservice", f"kill -0 {web.main_pid()}")

        host.run(f"set -e\n{undo}", check=True)
        assert owners(web) == ["vmservice", "vmservice"]
        left = "find /etc -name '*web_2d1*' -o -name '*vm-web*' -o -name own-account.conf; getent passwd vm-web-1"
        assert host.run(left).stdout == ""
        web.stop()
    finally:
        host.run(undo)  # where it is done already, nothing
        web.remove()
        host.run("rm -rf /var/*/vmservice/web-1 /etc/systemd/system/vm@web-1.service.d")


@every_release
def test_dynamic_users_where_the_bus_is_dbus_broker(broker_container: Container) -> None:
    host = broker_container
    host.run(
        f"install -D -m 644 {EXAMPLES}/dynamic-user.conf /etc/systemd/system/vm@.service.d/dynamic-user.conf"
        " && systemctl daemon-reload",
        check=True,
    )
    one, two = UnitVm(host, "one"), UnitVm(host, "two")
    for vm in (one, two):
        log = f"/var/log/vmservice/{vm.name}/console.log"
        vm.configure(f'{firmware_config()}[console]\nmode = "file"\npath = "{log}"\n')
        vm.start()
    host.run("sed -i '/^ *su /d' /etc/logrotate.d/vmservice", check=True)  # as accounts.md says
    host.run(
        f"echo before > {log} && logrotate --force /etc/logrotate.conf && grep before {log}.1"
        f" && timeout 60 sh -c 'until test -e {log}; do sleep 0.1; done'",
        check=True,
    )
    uids = {host.run(f"stat --format=%u /proc/{vm.main_pid()}", check=True).stdout.strip() for vm in (one, two)}
    assert len(uids) == 2
    assert all(61184 <= int(uid) <= 65519 for uid in uids), uids
    one.call("Pause")
    assert (one.state, two.state) == ("paused", "running")
    uid = host.run(f"stat --format=%u /proc/{one.main_pid()}", check=True).stdout.strip()
    groups = host.run("getent group vmservice", check=True).stdout.split(":")[2]
    as_one = f"setpriv --reuid={uid} --regid={uid} --groups={groups} --"
    refused = host.run(f"{as_one} busctl call {two.bus_name} {OBJECT} {INTERFACE} Pause")
    assert refused.returncode != 0, "one VM's user controls another VM"
    assert two.state == "running"
    assert host.run(f"{as_one} kill -0 {two.main_pid()}").returncode != 0
    assert (
        "secret"
        not in host.run(f"echo secret > /var/lib/vmservice/two/image; {as_one} cat /var/lib/vmservice/two/image").stdout
    )
    host.run(f"nsenter --mount --target {one.main_pid()} test -w /var/lib/vmservice/one", check=True)
    for vm in (one, two):
        vm.stop()
        assert vm.show("Result") == "success"
    one.start()
    one.call("Pause")
