"""The Debian package on a real system: what it installs, that an upgrade leaves VMs alone, and that a purge leaves nothing."""

from __future__ import annotations

from support.container import Container
from support.package import INSTALLED_FROM
from support.releases import every_release
from support.unit_vm import UnitVm, firmware_config

# Where files come and go without being the package's.
_PASSING = " -o ".join(f"-path {folder} -prune" for folder in ("/proc", "/sys", "/run", "/dev", "/lab", "/tmp"))


@every_release
def test_it_installs_what_systemd_the_bus_and_people_look_for(container: Container) -> None:
    made = "/etc/vmservice /usr/lib/systemd/system-generators/vmservice-generator"
    files = container.run(f"dpkg -L vmservice && ls -d {made}", check=True).stdout.split()

    assert {
        "/etc/logrotate.d/vmservice",
        "/etc/vmservice",
        "/usr/bin/vmservice",
        "/usr/lib/systemd/catalog/vmservice.catalog",
        "/usr/lib/systemd/system/vm@.service",
        "/usr/lib/systemd/user/vm@.service",
        "/usr/lib/systemd/system-generators/vmservice-generator",
        "/usr/lib/systemd/user-generators/vmservice-generator",
        "/usr/libexec/vmservice/register-machine",
        "/usr/libexec/vmservice/reload",
        "/usr/libexec/vmservice/why-ended",
        "/usr/lib/sysusers.d/vmservice.conf",
        "/usr/lib/systemd/system/vmservice-manager.service",
        "/usr/lib/systemd/user/vmservice-manager.service",
        "/usr/share/cockpit/vmservice/index.html",
        "/usr/share/cockpit/vmservice/manifest.json",
        "/usr/share/dbus-1/interfaces/org.vmservice.Manager1.VM.xml",
        "/usr/share/dbus-1/interfaces/org.vmservice.Manager1.xml",
        "/usr/share/bash-completion/completions/vmservice",
        "/usr/share/dbus-1/interfaces/org.vmservice.VM1.xml",
        "/usr/share/dbus-1/services/org.vmservice.Manager1.service",
        "/usr/share/dbus-1/system-services/org.vmservice.Manager1.service",
        "/usr/share/dbus-1/system.d/org.vmservice.Manager1.conf",
        "/usr/share/dbus-1/system.d/org.vmservice.VM1.conf",
        "/usr/share/doc/vmservice/accounts.md",
        "/usr/share/doc/vmservice/examples/demo.toml",
        "/usr/share/doc/vmservice/testing-clients.md",
        "/usr/share/doc/vmservice/threat-model.md",
        "/usr/share/polkit-1/actions/org.vmservice.vm1.policy",
        "/usr/share/fish/vendor_completions.d/vmservice.fish",
        "/usr/share/man/man1/vmservice.1.gz",
        "/usr/share/man/man5/org.vmservice.VM1.5.gz",
        "/usr/share/man/man5/vmservice.toml.5.gz",
        "/usr/share/man/man8/vm-disk@.service.8.gz",
        "/usr/share/man/man8/vm@.service.8.gz",
        "/usr/share/zsh/vendor-completions/_vmservice",
    } <= set(files)


@every_release
def test_its_modules_are_compiled(container: Container) -> None:
    sources = container.run("ls /usr/lib/python3/dist-packages/vmservice/*.py | wc -l", check=True).stdout
    compiled = container.run("ls /usr/lib/python3/dist-packages/vmservice/__pycache__/*.pyc | wc -l", check=True).stdout
    assert int(sources) == int(compiled) > 0


@every_release
def test_the_command_and_the_module_are_one_program(container: Container) -> None:
    command = container.run("vmservice --help", check=True).stdout
    module = container.run("cd / && python3 -m vmservice --help", check=True).stdout
    assert command == module != ""


@every_release
def test_systemd_finds_no_fault_in_the_units(container: Container) -> None:
    assert container.run("systemd-analyze verify --man=no vm@demo.service 2>&1", check=True).stdout == ""
    user = "XDG_RUNTIME_DIR=/run systemd-analyze --user verify --man=no vm@demo.service 2>&1"
    assert container.run(user, check=True).stdout == ""


@every_release
def test_exposure_is_as_low_as_is_claimed(container: Container) -> None:
    container.run("systemd-analyze security --no-pager --threshold=4 vm@demo.service", check=True)


@every_release
def test_the_catalog_explains_messages(container: Container) -> None:
    catalog = container.run("journalctl --list-catalog", check=True).stdout
    assert " vmservice: " in catalog or "VM" in catalog


@every_release
def test_an_upgrade_leaves_a_running_vm_alone(own_container: Container) -> None:
    vm = UnitVm(own_container, "demo")
    vm.configure(firmware_config())
    vm.start()
    pid = vm.main_pid()

    own_container.run(f"apt-get install -y -qq --reinstall {INSTALLED_FROM}", check=True)

    assert vm.main_pid() == pid
    assert vm.state == "running"
    vm.stop()
    assert vm.show("Result") == "success"


@every_release
def test_a_removal_powers_vms_off_and_a_purge_leaves_nothing(bare_container: Container) -> None:
    bare_container.run("touch /var/tmp/before", check=True)
    bare_container.run(f"apt-get install -y -qq {INSTALLED_FROM}", check=True)
    vm = UnitVm(bare_container, "demo")
    vm.configure(firmware_config())
    bare_container.run("systemctl enable vm@demo", check=True)
    vm.start()
    vm.wait_for("beat 2")

    purged = bare_container.run("apt-get purge -y -qq vmservice 2>&1", check=True)

    assert "warning" not in purged.stdout
    assert "power button" in vm.journal()
    found = bare_container.run(
        f"find / {_PASSING} -o -ipath '*vmservice*' -print -o -name '*vm@*' -print", check=True
    ).stdout.split()
    assert found == ["/etc/vmservice", "/etc/vmservice/demo.toml"]


def test_it_can_be_installed_again_after_a_purge(bare_container: Container) -> None:
    for _ in range(2):
        bare_container.run(f"apt-get install -y -qq {INSTALLED_FROM}", check=True)
        vm = UnitVm(bare_container, "demo")
        vm.configure(firmware_config())
        vm.start()
        assert vm.state == "running"
        bare_container.run("apt-get purge -y -qq vmservice", check=True)
        assert bare_container.run("systemctl is-active vm@demo").stdout.strip() == "inactive"
