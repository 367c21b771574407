"""`make demo`: the main job as a person sees it, command by command, with what each one really printed.

Each step checks what it shows; the first that is not as it should be ends the demo with status 1.
"""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import time
from pathlib import Path

from lab.channel import Completed
from lab.disk_guest import disk_table
from lab.host import LabHost, nested_kvm
from lab.prepare import guest_config, payload
from lab.root_disk import REACHED, root_cmdline
from support.cache import say
from support.package import INSTALLED_FROM

_OBJECT = "org.vmservice.VM1.demo /org/vmservice/VM1"
_FOLLOW = "python3 /lab/journal_wait.py vm@demo.service '{pattern}' 200"
_BEAT = "while sleep 1; do echo beat $((beat += 1)); done > /dev/ttyS0 &"
_BEATS = "journalctl -o cat -u vm@demo | grep -c 'beat [0-9]'"


class _Mismatch(Exception):
    """A step did not show what it should."""


class _Stage:
    """Runs commands in the host, shown as if typed."""

    def __init__(self, host: LabHost) -> None:
        self._host = host

    def tell(self, text: str) -> None:
        print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)

    def show(self, command: str, expect: str = "", *, really: str = "", status: int = 0) -> Completed:
        """Prints `command` and what it prints, which `expect` must match. `really` runs in its place if it would not end."""
        print(f"$ {command}", flush=True)
        done = self._host.run(really or command, timeout=240, on_output=lambda text: print(text, end="", flush=True))
        if done.returncode != status:
            raise _Mismatch(f"`{command}` ended with {done.returncode}, not {status}")
        if not re.search(expect, done.stdout + done.stderr):
            raise _Mismatch(f"`{command}` did not show {expect!r}")
        return done

    def type(self, *commands: str, expect: str = "") -> None:
        """A person joins the guest's console, types `commands` there and leaves."""
        typed = shlex.join(["python3", "/lab/typist.py", "demo", "120", *commands])
        self.show("vmservice console demo", expect, really=typed)

    def count_beats(self) -> int:
        return int(self._host.run(_BEATS).stdout)


def demo() -> int:
    """Shows it all; the exit status."""
    begin = time.monotonic()
    files = payload()
    with tempfile.TemporaryDirectory(prefix="vmservice-") as directory:
        host = LabHost(Path(directory) / "host")
        try:
            say(f"booting a Debian 13 host, {'with hardware KVM' if nested_kvm() else 'with KVM in emulation'} …")
            host.start(files)
            say(f"the host is up after {time.monotonic() - begin:.0f} s")
            _play(_Stage(host))
        except _Mismatch as mismatch:
            print(f"\ndemo: {mismatch}", file=sys.stderr)
            return 1
        finally:
            host.stop()
    print(f"\ndemo: all as it should be, in {time.monotonic() - begin:.0f} s")
    return 0


def _play(stage: _Stage) -> None:
    stage.tell("Install the package, and say what the VM is")
    install = f"apt-get install -y -q=2 {INSTALLED_FROM} | grep -v 'Reading database'"
    stage.show("apt-get install ./vmservice.deb", "Setting up vmservice", really=install)
    text = guest_config(
        kernel="/disks/trixie.vmlinuz",
        initramfs="/disks/trixie.quick",
        cmdline=root_cmdline("trixie"),
        max_cpus=4,
        memory="384M",
        more=f'[console]\nmode = "pty"\n\n{disk_table("root", "/disks/trixie.raw", ephemeral="true")}',
    )
    stage.show("cat /etc/vmservice/demo.toml", "trixie", really=f"tee /etc/vmservice/demo.toml << 'EOF'\n{text}EOF")

    stage.tell("Start it: one unit, one process")
    stage.show("systemctl start vm@demo")
    stage.show("systemctl status vm@demo", r"Active: active \(running\)")

    stage.tell("The guest's serial console is in the journal")
    stage.show("journalctl -fu vm@demo -o cat", REACHED, really=_FOLLOW.format(pattern=REACHED))

    stage.tell("A person at its other console: an ordinary Debian; they leave something that beats on the serial console")
    look = ("head -n 4 /etc/os-release", "systemctl is-system-running --wait", "lsblk", "systemd-analyze")
    stage.type(*look, _BEAT, expect="(?s)Debian.*running.*vda1.*Startup finished")
    stage.show("journalctl -fu vm@demo -o cat", "beat 3", really=_FOLLOW.format(pattern="beat 3$") + " | tail -n 3")

    stage.tell("It is an object on the bus")
    stage.show(f"busctl introspect {_OBJECT} org.vmservice.VM1", r"\.State +property +s +\"running\"")

    stage.tell("Pause: the heartbeat stops")
    stage.show(f"busctl call {_OBJECT} org.vmservice.VM1 Pause")
    stage.show(f"busctl get-property {_OBJECT} org.vmservice.VM1 State", '"paused"')
    # What the guest had written before it stopped is still on its way to the journal.
    stage.show("journalctl --sync")
    paused_at = stage.count_beats()
    stage.show("sleep 4; " + _BEATS, f"^{paused_at}$")

    stage.tell("Resume: it goes on where it was")
    stage.show(f"busctl call {_OBJECT} org.vmservice.VM1 Resume")
    stage.show(
        "journalctl -fu vm@demo -o cat", f"beat {paused_at + 2}", really=_FOLLOW.format(pattern=f"beat {paused_at + 2}$")
    )
    stage.show(f"busctl get-property {_OBJECT} org.vmservice.VM1 State", '"running"')

    stage.tell("Resize: three vCPUs come, and go again; each call returns when the guest has done its part")
    for count in (4, 1):
        stage.show(f"busctl call {_OBJECT} org.vmservice.VM1 Resize y {count}")
        stage.show(f"busctl get-property {_OBJECT} org.vmservice.VM1 VCPUs", f"y {count}")
        stage.type("udevadm settle", "nproc", expect=rf"nproc\n{count}\n")

    stage.tell("Stop it: the guest sees its power button and powers off")
    stage.show("systemctl stop vm@demo")
    stage.show("journalctl -u vm@demo -n 12", "Power down")
    stage.show("systemctl show -p ActiveState,Result vm@demo", "(?s)Result=success.*ActiveState=inactive")
