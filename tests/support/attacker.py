"""What a guest that has broken out into its VMM could try, tried: `attacker.py VICTIM PID` as vm@NAME, in its very sandbox.

PID and VICTIM are another VM, of the same account, whose secrets lie where test_security.py puts them. Prints JSON: for each
attempt "done", or the errno's name, or what else came of it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable

VICTIM = sys.argv[1]
PID = int(sys.argv[2])

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def system_call(number: int, *arguments: object) -> None:
    """By its x86-64 number, <asm/unistd_64.h>; plain ints are passed as longs."""
    if _libc.syscall(number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def write(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def overwrite_memory() -> None:
    with open(f"/proc/{PID}/mem", "r+b"):
        pass


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def executable_memory() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def made_executable() -> None:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "refused")


def say(*arguments: str) -> None:
    said = subprocess.run(["busctl", *arguments], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise PermissionError(errno.EPERM, said.stderr)


def read_memory_across() -> None:
    buffer = ctypes.create_string_buffer(8)
    here = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 8)
    there = (ctypes.c_ulong * 2)(int(sys.argv[3], 16), 8)
    system_call(310, PID, here, 1, there, 1, 0)


def any_pseudoterminal() -> None:
    """Whichever there is: the other VM's console."""
    for name in os.listdir("/dev/pts"):
        if name.isdigit():
            os.close(os.open(f"/dev/pts/{name}", os.O_RDWR | os.O_NOCTTY))
            return
    raise FileNotFoundError(errno.ENOENT, "there is none")


def journal_line() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.sendto(f"MESSAGE=forged\nVM_NAME={VICTIM}\n".encode(), "/run/systemd/journal/socket")


def open_family(family: int) -> Callable[[], None]:
    return lambda: socket.socket(family, socket.SOCK_RAW if family == socket.AF_PACKET else socket.SOCK_DGRAM).close()


ATTEMPTS: dict[str, Callable[[], object]] = {
    # The other VM's files
    "read state": lambda: read(f"/var/lib/vmservice/{VICTIM}/image"),
    "list state": lambda: os.listdir(f"/var/lib/vmservice/{VICTIM}"),
    "write state": lambda: write(f"/var/lib/vmservice/{VICTIM}/image"),
    "read log": lambda: read(f"/var/log/vmservice/{VICTIM}/secret"),
    "read runtime": lambda: os.listdir(f"/run/vmservice/{VICTIM}"),
    "connect console": lambda: connect(f"/run/vmservice/{VICTIM}/serial.sock"),
    "make a place beside": lambda: os.mkdir("/var/lib/vmservice/planted"),
    # The other VM's process
    "see process": lambda: os.stat(f"/proc/{PID}"),
    "read memory": lambda: read(f"/proc/{PID}/mem"),
    "write memory": overwrite_memory,
    "read environment": lambda: read(f"/proc/{PID}/environ"),
    "list descriptors": lambda: os.listdir(f"/proc/{PID}/fd"),
    "through its root": lambda: os.listdir(f"/proc/{PID}/root/var/lib/vmservice/{VICTIM}"),
    "ptrace": lambda: system_call(101, 16, PID, 0, 0),  # PTRACE_ATTACH
    "process_vm_readv": read_memory_across,
    "pidfd_getfd": lambda: system_call(438, os.pidfd_open(PID), 0, 0),
    "prlimit": lambda: system_call(302, PID, 7, (ctypes.c_ulong * 2)(1, 1), 0),  # RLIMIT_NOFILE
    "kill": lambda: os.kill(PID, 0),
    "tgkill": lambda: system_call(234, PID, PID, 0),
    "pidfd_send_signal": lambda: signal.pidfd_send_signal(os.pidfd_open(PID), 0),
    "rt_sigqueueinfo": lambda: system_call(129, PID, signal.SIGCONT, (ctypes.c_int * 32)(0, 0, -1)),  # SI_QUEUE
    # Over the bus
    "control the VM": lambda: say("call", f"org.vmservice.VM1.{VICTIM}", "/org/vmservice/VM1", "org.vmservice.VM1", "Pause"),
    "stop the unit": lambda: say(
        "call",
        "org.freedesktop.systemd1",
        "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager",
        "StopUnit",
        "ss",
        f"vm@{VICTIM}.service",
        "replace",
    ),
    "own another service's name": lambda: say(
        "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", "org.freedesktop.machine1", "4"
    ),
    # Sockets
    **{
        f"socket {family.name}": open_family(family)
        for family in (
            socket.AF_INET,
            socket.AF_INET6,
            socket.AF_NETLINK,
            socket.AF_PACKET,
            socket.AF_VSOCK,
            socket.AF_ALG,
            socket.AF_BLUETOOTH,
        )
    },
    # Devices
    **{
        f"open {path}": lambda path=path: os.close(os.open(path, os.O_RDWR))  # type: ignore[misc]
        for path in ("/dev/fuse", "/dev/net/tun", "/dev/kmsg", "/dev/open-to-all")
    },
    "make a device": lambda: os.mknod("/tmp/disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)),
    # The host
    "write /etc": lambda: write("/etc/planted"),
    "write /usr": lambda: write("/usr/bin/vmservice"),
    "write its configuration": lambda: write("/etc/vmservice/demo.toml"),
    "read homes": lambda: read("/home/alice/secret"),
    "read shadow": lambda: read("/etc/shadow"),
    "read another's /tmp": lambda: read("/tmp/secret"),
    "write a kernel setting": lambda: write("/proc/sys/kernel/hostname"),
    "write a control group": lambda: os.mkdir("/sys/fs/cgroup/planted"),
    "set-user-ID program": lambda: os.chmod(os.open("/tmp/suid", os.O_CREAT | os.O_RDWR), 0o4755),
    "become root": lambda: os.setuid(0),
    "new namespace": lambda: system_call(272, 0x10000000),  # CLONE_NEWUSER
    "mount": lambda: system_call(165, b"none", b"/tmp", b"tmpfs", 0, None),
    "bpf": lambda: system_call(321, 0, None, 0),
    "perf_event_open": lambda: system_call(298, None, 0, -1, -1, 0),
    "userfaultfd": lambda: system_call(323, 0),
    "io_uring_setup": lambda: system_call(425, 1, ctypes.create_string_buffer(120)),
    "load a module": lambda: system_call(313, 0, b"", 0),
    "reboot": lambda: system_call(169, 0, 0, 0, None),
    "set the clock": lambda: system_call(227, 0, (ctypes.c_long * 2)(0, 0)),
    "real-time priority": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "writable and executable memory": executable_memory,
    "memory made executable": made_executable,
    # What an account that is shared does not protect
    "take the name of a VM that does not run": lambda: say(
        "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "RequestName", "su", "org.vmservice.VM1.absent", "4"
    ),
    "open a pseudoterminal": any_pseudoterminal,
    "read a named file of memory": lambda: read("/dev/shm/victim"),
    "name another VM in the journal": journal_line,
    # What a VM of its own needs: shows that the attempts are real ones
    "own state": lambda: write("/var/lib/vmservice/demo/own"),
    "own signals": lambda: os.kill(os.getpid(), 0),
    "kvm": lambda: os.close(os.open("/dev/kvm", os.O_RDWR)),
    "the bus": lambda: say("get-property", f"org.vmservice.VM1.{VICTIM}", "/org/vmservice/VM1", "org.vmservice.VM1", "State"),
}


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


if __name__ == "__main__":
    if "--unconfined" not in sys.argv:
        sys.path.insert(0, "/usr/lib/python3/dist-packages")
        from vmservice.host import landlock

        print("landlock:", landlock.confine(), file=sys.stderr)
    print(json.dumps({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}))
