"""The lab's host: a Debian 13 in QEMU with a /dev/kvm of its own, emulated in software unless this machine's KVM can nest.

QEMU runs out of a tree of its own (emulator.py), in a mount namespace, so any machine has the same one. Nothing is written but
the run folder: the disks are snapshots that are gone with the process, but for one that a test may keep.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.channel import Channel, CommandFailed, Completed, HostDied
from lab.emulator import emulator_tree
from lab.images import guest_disks, host_disk, host_initramfs, payload_disk
from lab.kernel import KernelPackage
from lab.root_tree import root_tree

_HERE = Path(__file__).parent
_MEMORY_MIB = 3072
# Emulated on two busy cores it takes ten to thirty seconds.
_BOOT_TIMEOUT_SEC = 180.0

# Laid over the emulator's tree in the namespace: the run folder, twice (QEMU's snapshot goes to /var/tmp), images, the kernel.
_ENTER = """\
set -e
mount --bind {run} {root}/mnt
mount --bind {run} {root}/var/tmp
mount --bind {images} {root}/media
mount --bind {boot} {root}/boot
mount --rbind /dev {root}/dev
mount -t proc proc {root}/proc
exec chroot {root} {command}
"""


def nested_kvm() -> bool:
    """Whether this machine's KVM gives its guests hardware virtualisation. Asked, never assumed."""
    for module in ("kvm_amd", "kvm_intel"):
        try:
            answer = Path(f"/sys/module/{module}/parameters/nested").read_text().strip()
        except OSError:
            continue
        if answer in ("1", "Y") and os.access("/dev/kvm", os.R_OK | os.W_OK):
            return True
    return False


class LabHost:
    """One host. `directory` is its run folder: sockets, console log, payload, pid."""

    def __init__(self, directory: Path, kept: Path | None = None, cpus: int = 2) -> None:
        """`kept` is a disk image besides the folder that outlives each QEMU: virtio-kept in the host."""
        self._directory = directory
        self._kept = kept
        self._cpus = cpus
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def console_log(self) -> Path:
        """What the host wrote on its serial console."""
        return self._directory / "console.log"

    def start(self, payload: Mapping[str, Path], *, detached: bool = False) -> None:
        """Boots, and returns when the agent answers. `payload` is what /lab holds there. A host that dies while it boots is
        started once more. Unless `detached`, it ends with this process, however that ends."""
        try:
            self._start(payload, detached)
        except HostDied as death:
            print(f"lab: {death}; starting it once more\n{self.last_words()}", flush=True)
            self.stop()
            self._start(payload, detached)

    def attach(self) -> None:
        """Connects to a host that another process started with `detached`."""
        self._connect(timeout_sec=20)

    def alive(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        return self._pid() is not None

    def run(
        self,
        command: str,
        *,
        timeout: float = 60,
        check: bool = False,
        stdin: bytes = b"",
        on_output: Callable[[str], None] | None = None,
    ) -> Completed:
        """Runs a bash command line as root in the host. With `check` it must end with 0 in time, or CommandFailed tells what
        it said. Raises HostDied if the host is gone or hangs."""
        if self._channel is None:
            raise HostDied("the lab's host is not running")
        completed = self._channel.run(command, timeout, stdin, on_output)
        if check and (completed.returncode != 0 or completed.timed_out):
            raise CommandFailed(repr(completed))
        return completed

    def stop(self) -> None:
        """Ends the host at once: nothing in it is kept."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        elif (pid := self._pid()) is not None:
            os.kill(pid, signal.SIGKILL)
        (self._directory / "pid").unlink(missing_ok=True)

    def _start(self, payload: Mapping[str, Path], detached: bool) -> None:
        if self._directory.exists():
            shutil.rmtree(self._directory)
        self._directory.mkdir(parents=True)
        payload_disk(self._directory / "payload.ext4", {"agent.py": _HERE / "agent.py", **payload}, self._directory / "payload")
        shutil.rmtree(self._directory / "payload")
        disk, disks, ramdisk = host_disk(), guest_disks(), host_initramfs()
        if self._kept is not None:
            (self._directory / "kept").hardlink_to(self._kept)
        script = _ENTER.format(
            run=shlex.quote(str(self._directory)),
            root=shlex.quote(str(emulator_tree())),
            boot=shlex.quote(str(root_tree() / "boot")),
            images=shlex.quote(str(disk.parent)),
            command=shlex.join(_qemu(disk.name, disks.name, ramdisk.name, cpus=self._cpus, kept=self._kept is not None)),
        )
        leash = [] if detached else ["setpriv", "--pdeathsig", "KILL"]
        with (self._directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*leash, "unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self._directory / "pid").write_text(str(self._process.pid))
        self._connect(_BOOT_TIMEOUT_SEC)

    def _connect(self, timeout_sec: float) -> None:
        deadline = time.monotonic() + timeout_sec
        while self._channel is None:
            try:
                self._channel = Channel(self._directory / "channel", self.alive)
            except OSError:
                if not self.alive() or time.monotonic() > deadline:
                    raise HostDied(f"QEMU did not start: {self.last_words()}") from None
                time.sleep(0.05)
        self._channel.wait_ready(deadline - time.monotonic())

    def _pid(self) -> int | None:
        """The pid of the detached QEMU, if it is still the one."""
        try:
            pid = int((self._directory / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if b"org.vmservice.lab" in command else None

    def last_words(self) -> str:
        """The end of what QEMU and the host's kernel said, QEMU's exit status, and whether a triple fault has ended it."""
        status = self._process.poll() if self._process is not None else None
        words = "" if status is None else f"QEMU's exit status {status}\n"
        for name in ("qemu.log", "reset.log", "console.log"):
            path = self._directory / name
            if path.exists():
                words += path.read_text(errors="replace")[-2000:]
        return words


def _qemu(disk: str, disks: str, ramdisk: str, *, cpus: int, kept: bool) -> list[str]:
    """The command line, as seen in the namespace."""
    accelerator = ["-accel", "kvm", "-cpu", "host"] if nested_kvm() else ["-accel", "tcg,thread=multi", "-cpu", "max,+svm"]
    kernel = "/boot/" + KernelPackage(root_tree()).image.name
    return [
        "qemu-system-x86_64",
        *("-M", "q35"),
        *accelerator,
        *("-smp", str(cpus), "-m", str(_MEMORY_MIB)),
        # Says "Triple fault", which ends a host that has no word left itself.
        *("-d", "cpu_reset", "-D", "/mnt/reset.log"),
        *("-display", "none", "-monitor", "none", "-nodefaults", "-no-reboot"),
        *("-kernel", kernel, "-initrd", f"/media/{ramdisk}"),
        # An oops would leave a host that half works: it dies instead, and is known to have died.
        *("-append", "console=ttyS0 quiet panic=-1 oops=panic"),
        *("-drive", f"file=/media/{disk},format=raw,if=none,id=root,snapshot=on"),
        *("-device", "virtio-blk-pci,drive=root,serial=root"),
        *("-drive", "file=/mnt/payload.ext4,format=raw,if=none,id=payload,readonly=on"),
        *("-device", "virtio-blk-pci,drive=payload,serial=lab"),
        *("-drive", f"file=/media/{disks},format=raw,if=none,id=disks,readonly=on"),
        *("-device", "virtio-blk-pci,drive=disks,serial=disks"),
        *(("-drive", "file=/mnt/kept,format=raw,if=none,id=kept") if kept else ()),
        *(("-device", "virtio-blk-pci,drive=kept,serial=kept") if kept else ()),
        *("-chardev", "socket,id=console,path=/mnt/console,server=on,wait=off,logfile=/mnt/console.log"),
        *("-serial", "chardev:console"),
        *("-chardev", "socket,id=channel,path=/mnt/channel,server=on,wait=off"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=channel,name=org.vmservice.lab"),
    ]
