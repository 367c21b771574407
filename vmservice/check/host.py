"""What this host can run: a list of checks, each with its result and, where something is amiss, what to do about it."""

from __future__ import annotations

import importlib.util
import os

from vmservice.check.selftest import EXPECTED, run_test_vm, shown
from vmservice.config.core import VCPUS_MAX
from vmservice.errors import HostError, VmmError
from vmservice.kvm import abi
from vmservice.kvm.system import Kvm

OK = "ok"
MISSING = "missing"
LIMITED = "limited"

_ROOT_OPENS = "only users' own VMs need that, for root opens it for those of the system"
_TUN_RIGHTS = f"open it to all accounts, as systemd's udev rules do; {_ROOT_OPENS}"
_VHOST_NET_RIGHTS = f"add this account to its group, kvm on most hosts; {_ROOT_OPENS}"
_VHOST_VSOCK_RIGHTS = "add the account that runs the VM to its group, kvm on most hosts"

# What it is called here, path, module, what it is for, and what helps an account that may not open it.
_DEVICES = (
    ("tap", "/dev/net/tun", "tun", "networks at taps", _TUN_RIGHTS),
    ("vhost-net", "/dev/vhost-net", "vhost_net", "networks at taps whose frames the kernel moves", _VHOST_NET_RIGHTS),
    ("vhost-vsock", "/dev/vhost-vsock", "vhost_vsock", "sockets between host and guest, [vsock]", _VHOST_VSOCK_RIGHTS),
)

# Documentation/admin-guide/mm/transhuge.rst. Guest memory is shared memory that asks for huge pages.
_SHARED_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


class Check:
    """One line of the report: `result` is OK, LIMITED or MISSING; `hint` says what to do about it, or is empty."""

    __slots__ = ("detail", "hint", "name", "result")

    def __init__(self, name: str, result: str, detail: str, hint: str = "") -> None:
        self.name = name
        self.result = result
        self.detail = detail
        self.hint = hint

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "result": self.result, "detail": self.detail, "hint": self.hint}


def check_host() -> list[Check]:
    """Every check, in the order in which a person would put things right."""
    return [
        _check_processor(),
        *_check_kvm(),
        _check_huge_pages(),
        *_check_devices(),
        _check_passt(),
        _check_systemd(),
        _check_bus(),
        *_check_libraries(),
    ]


def _check_processor() -> Check:
    name = "processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError as error:
        return Check(name, LIMITED, f"/proc/cpuinfo cannot be read: {error.strerror}")
    for flag, vendor in (("vmx", "Intel VT-x"), ("svm", "AMD-V")):
        if flag in flags:
            return Check(name, OK, f"hardware virtualisation: {vendor}")
    return Check(
        name,
        LIMITED,
        "no hardware virtualisation (neither vmx nor svm): a KVM that is there all the same runs firmware payloads;"
        " 64-bit Linux guests may not start",
        "enable VT-x or AMD-V in the firmware, or nested virtualisation on the host above",
    )


def _check_kvm() -> list[Check]:
    try:
        kvm = Kvm()
    except VmmError as error:
        return [Check("kvm", MISSING, str(error), "make /dev/kvm available to this account")]
    try:
        return [
            Check("kvm", OK, f"/dev/kvm answers with API version {abi.KVM_API_VERSION}"),
            _check_capabilities(kvm),
            *_check_options(kvm),
            Check("vcpus", OK, f"up to {min(kvm.max_vcpus, VCPUS_MAX)} vCPUs a VM"),
            _check_test_vm(kvm),
        ]
    finally:
        kvm.close()


def _check_capabilities(kvm: Kvm) -> Check:
    missing = kvm.missing()
    if missing:
        return Check("capabilities", MISSING, f"KVM lacks {', '.join(missing)}", "use a newer kernel on the host")
    return Check("capabilities", OK, "all that a VM needs")


def _check_options(kvm: Kvm) -> list[Check]:
    """What a VM can do without, and how it then does."""
    split = all(kvm.extension(cap) for cap in (abi.KVM_CAP_SPLIT_IRQCHIP, abi.KVM_CAP_SIGNAL_MSI))
    options = [
        ("irqchip", split, "split, with the IOAPIC in user space", "the in-kernel one is used instead"),
        ("timer", kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER), "TSC deadline", "a PIT is used instead"),
        ("console", kvm.extension(abi.KVM_CAP_COALESCED_PIO), "coalesced writes", "each byte is an exit of its own"),
        (
            "clock",
            kvm.extension(abi.KVM_CAP_KVMCLOCK_CTRL),
            "guests are told of pauses",
            "a pause may alarm a guest",
        ),
    ]
    return [Check(name, OK, good) if there else Check(name, LIMITED, bad) for name, there, good, bad in options]


def _check_test_vm(kvm: Kvm) -> Check:
    try:
        output = run_test_vm(kvm)
    except HostError as error:
        return Check("test VM", MISSING, str(error), "this KVM runs no guest code; look at the host's kernel log")
    if output != EXPECTED:
        return Check("test VM", MISSING, f"it computed {shown(output)} instead of {shown(EXPECTED)}", "do not trust this host")
    return Check("test VM", OK, f"a real-mode guest added 2 and 3 and wrote {shown(output)} to its serial port")


def _check_huge_pages() -> Check:
    name = "huge pages"
    try:
        with open(_SHARED_HUGE_PAGES, encoding="ascii") as file:
            chosen = file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return Check(name, LIMITED, "this kernel has no transparent huge pages: guest memory is in small pages")
    if chosen in ("never", "deny"):
        return Check(
            name,
            LIMITED,
            f"guest memory is in small pages, which is slower: shmem_enabled is {chosen}",
            f"echo advise > {_SHARED_HUGE_PAGES}; for later starts of the host, a line `w {_SHARED_HUGE_PAGES} - - - - advise`"
            " in a file of /etc/tmpfiles.d",
        )
    return Check(name, OK, f"guest memory has them: shmem_enabled is {chosen}")


def _check_devices() -> list[Check]:
    """What only some VMs need, and nobody knows to be there before it is opened: the kernel then loads the module."""
    checks = []
    for name, path, module, purpose, rights in _DEVICES:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except PermissionError as error:
            checks.append(Check(name, LIMITED, f"{path}: {error.strerror}; it is for {purpose}", rights))
        except OSError as error:
            checks.append(Check(name, LIMITED, f"{path}: {error.strerror}; it is for {purpose}", f"modprobe {module}"))
        else:
            checks.append(Check(name, OK, f"for {purpose}"))
    return checks


def _check_passt() -> Check:
    from vmservice.host.passt import PASST, find_passt

    purpose = "for networks without privilege"
    try:
        way = "by vhost-user" if find_passt("") else "by a stream, for it is of before November 2024"
    except HostError:
        return Check("passt", LIMITED, f"there is no {PASST}; it is {purpose}", "install the package passt")
    return Check("passt", OK, f"{purpose}, {way}")


def _check_systemd() -> Check:
    if os.path.isdir("/run/systemd/system"):
        return Check("systemd", OK, "it is this host's service manager")
    return Check("systemd", LIMITED, "it is not running here: vm@NAME.service is not available, `vmservice run` is")


def _check_bus() -> Check:
    path = "/run/dbus/system_bus_socket"
    if os.path.exists(path):
        return Check("system bus", OK, path)
    return Check("system bus", LIMITED, f"there is no {path}: VMs run without their bus object", "install and start dbus")


def _check_libraries() -> list[Check]:
    checks = []
    for module, package, purpose in (
        ("dbus_next", "python3-dbus-next", "the bus object"),
        ("elftools", "python3-pyelftools", "ELF kernels"),
        ("systemd", "python3-systemd", "the journal and the service manager"),
    ):
        if importlib.util.find_spec(module) is None:
            checks.append(Check(module, MISSING, f"it is not installed: {purpose} needs it", f"install {package}"))
        else:
            checks.append(Check(module, OK, f"for {purpose}"))
    return checks
