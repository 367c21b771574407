"""From an image to a shell, as the README's first screen has it, on a Debian 13 host."""

from __future__ import annotations

from lab.disk_guest import BOOT_TIMEOUT_SEC
from support.unit_vm import UnitVm

# The person's key; a guest's host key is not asked about.
KEY = (
    "mkdir -p -m 700 ~/.ssh; echo 'StrictHostKeyChecking accept-new' > ~/.ssh/config;"
    " [ -e ~/.ssh/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519"
)
FOLDER = "/var/lib/vmservice"


def test_from_an_image_to_a_shell_and_to_nothing(vm: UnitVm) -> None:
    host, name = vm.host, vm.name
    host.run(f"rm /etc/vmservice/{name}.toml; {KEY}", check=True)
    words = f"--image /disks/trixie.raw --size 2G --memory 384M --network none {name}"
    made = host.run(f"vmservice create {words}", timeout=180)
    assert made.returncode == 0, made
    assert f"vmservice ssh root@{name}" in made.stdout
    # More time than `create` gives a guest, on a host as slow as this.
    host.run(f"sed -i 's/^ready = \"guest\".*/&\\nready_timeout = 900/' /etc/vmservice/{name}.toml", check=True)
    try:
        # The unit is ready when the guest is.
        vm.start(BOOT_TIMEOUT_SEC)
        shown = host.run(f"vmservice ssh root@{name} 'resize2fs -p /dev/vda1 >&2; hostname; exit 7'", timeout=180)
        assert (shown.returncode, shown.stdout) == (7, "trixie\n"), shown
        refused = host.run(f"vmservice delete --yes {name}")
        assert (refused.returncode, "stop it before you delete it" in refused.stderr) == (69, True)
        vm.stop()
        assert vm.show("Result") == "success"
        assert "the guest of" not in vm.journal(), "it has the kernel that it was started with"
        updated = host.run(f"vmservice update-kernel {name}")
        assert updated.returncode == 0, updated
        assert host.run(f"stat --format=%U {FOLDER}/{name}/vmlinuz", check=True).stdout == "vmservice\n"
    finally:
        deleted = host.run(f"systemctl stop {vm.unit}; vmservice delete --yes {name}", timeout=200)
    assert deleted.returncode == 0, deleted
    assert host.run(f"ls -A {FOLDER}/{name} /etc/vmservice/{name}.toml").stdout == ""
