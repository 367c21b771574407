"""The example that is shipped, as its first lines say to use it: a guest of the host's own kernel."""

from __future__ import annotations

from lab.guest_checks import BOOT_TIMEOUT_SEC
from lab.host import LabHost
from support.unit_vm import UnitVm

EXAMPLES = "/usr/share/doc/vmservice/examples"
# A person at a pipe, who stays until the guest has had time to answer.
_TYPE = "{{ echo '{command}'; sleep 30; }} | timeout 60 vmservice console demo > /dev/null"


def test_it_starts_is_typed_at_takes_vcpus_and_hears_its_power_button(lab: LabHost) -> None:
    vm = UnitVm(lab, "demo")
    try:
        lab.run(f"cd {EXAMPLES} && sh make-demo-guest && cp demo.toml /etc/vmservice/", check=True)
        vm.start()
        vm.wait_for(r"demo guest: Linux \S+, 1 CPU", BOOT_TIMEOUT_SEC)
        vm.call("Resize", "y", "2")
        lab.run(_TYPE.format(command='until [ "$(nproc)" = 2 ]; do sleep 1; done; echo "it has $(nproc)"'), check=True)
        vm.wait_for("it has 2")
        vm.stop()
        assert vm.show("Result") == "success"
        assert "demo guest: power button" in vm.journal()
        # Made anew, where a VMM that was taken over has had the directory to itself.
        lab.run("echo secret > /root/secret; cd /var/lib/vmservice/demo && ln -sf /root/secret initramfs", check=True)
        lab.run(f"cd {EXAMPLES} && sh make-demo-guest", check=True)
        listed = lab.run("cd /var/lib/vmservice/demo && stat --format='%n %F %a %U' *; cat /root/secret", check=True).stdout
        made = "".join(f"{name} regular file 600 vmservice\n" for name in ("initramfs", "vmlinuz"))
        assert listed == f"{made}secret\n"
    finally:
        vm.remove()
        lab.run("rm -rf /var/lib/vmservice/demo /root/secret")
