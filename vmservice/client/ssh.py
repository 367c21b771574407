"""`vmservice ssh NAME [COMMAND…]`: ssh(1), run in this process' place, with the way to the VM's guest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from vmservice.client import interrupts
from vmservice.client.bus import connected_bus
from vmservice.client.vms import NotRunning, facts, with_near_name
from vmservice.config.forward import parse_forward
from vmservice.config.sections.vsock import CID_MAX, CID_MIN
from vmservice.errors import HostError, HostFacilityMissing, UsageError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.client.vms import DeviceFacts, Facts

# systemd's own way to ssh over vsock, since 256: systemd-ssh-proxy(1).
PROXY = "/usr/lib/systemd/systemd-ssh-proxy"
# For hosts with an older systemd.
_SOCAT = "/usr/bin/socat"
_SSH_PORT = 22


def run_ssh(target: str, command: Sequence[str], *, user: bool) -> NoReturn:
    """Become ssh, to `target`, which is NAME or USER@NAME; its exit status is ours.

    NotRunning, HostFacilityMissing or HostError where that cannot be, UsageError for a USER that nobody can be.
    """
    login, _, name = target.rpartition("@")
    if login.startswith("-"):
        raise UsageError(f"{quoted(login)} cannot be the name of an account: it begins with -, as options do")
    vm = interrupts.run(_ask(name, user=user))
    line = ssh_command(vm, login, command)
    try:
        os.execvp(line[0], line)
    except FileNotFoundError:
        raise HostFacilityMissing("ssh is not installed; Debian has it in openssh-client") from None
    except OSError as error:
        raise HostError.from_os("cannot run ssh", error) from None


def ssh_command(vm: Facts, login: str, command: Sequence[str], proxies: Sequence[str] = (PROXY, _SOCAT)) -> list[str]:
    """The command line; `proxies` are systemd's and socat, as paths that need not be there.

    Whoever has the VM's name says what its devices are, and is not trusted with what the caller runs: only a number and an
    address come from there, and behind `--` neither they nor `command` can be options of ssh.
    """
    options = ["-l", login] if login else []
    # The guest's key goes by the VM's name: a number, or a port of the host, may be another VM's tomorrow.
    options += ["-o", f"HostKeyAlias=vm-{vm.name}", "-o", "CheckHostIP=no"]
    devices = vm.devices or ()
    cid = next((one.details["cid"] for one in devices if one.kind == "vsock" and "cid" in one.details), None)
    if cid is not None:
        if type(cid) is not int or not CID_MIN <= cid <= CID_MAX:
            raise _not_believed(vm.name, "its CID", cid)
        return ["ssh", *options, *_vsock_options(cid, proxies), "--", f"vsock/{cid}", *command]
    for network in (one for one in devices if one.kind == "network"):
        address, port = _forwarded(vm.name, network)
        if port:
            return ["ssh", *options, "-p", str(port), "--", address, *command]
    raise HostFacilityMissing(
        f"there is no way known to the guest of {vm.name}: give it [vsock], or a network with"
        ' forward = ["2222:22/tcp"], in its configuration; or ssh to the address that it has on its network'
    )


def _vsock_options(cid: int, proxies: Sequence[str]) -> list[str]:
    systemd, socat = proxies
    if os.access(systemd, os.X_OK):
        return ["-o", f"ProxyCommand={systemd} vsock/{cid} 22", "-o", "ProxyUseFdpass=yes"]
    if os.access(socat, os.X_OK):
        return ["-o", f"ProxyCommand={socat} - VSOCK-CONNECT:{cid}:22"]
    raise HostFacilityMissing("ssh over vsock needs systemd 256 or later, for its systemd-ssh-proxy, or socat")


def _forwarded(name: str, network: DeviceFacts) -> tuple[str, int]:
    """(address, port) of the host that lead to the guest's port 22, of what `forward` says; ("", 0) where none does.

    HostFacilityMissing for what could not be in any configuration: an address is one of IP, and a port a number.
    """
    rules = network.details.get("forward", "")
    if not isinstance(rules, str):
        raise _not_believed(name, "a forwarded port", rules)
    for rule in rules.replace(",", " ").split():
        try:
            entry = parse_forward(rule)
        except ValueError:
            raise _not_believed(name, "a forwarded port", rule) from None
        if entry.protocol == "tcp" and _SSH_PORT in range(entry.guest, entry.guest + entry.count):
            return entry.address or "localhost", entry.host + _SSH_PORT - entry.guest
    return "", 0


def _not_believed(name: str, what: str, said: object) -> HostFacilityMissing:
    return HostFacilityMissing(f"the VM {name} says of {what} that it is {quoted(str(said))}, which it cannot be")


async def _ask(name: str, *, user: bool) -> Facts:
    async with connected_bus(user=user) as bus:
        try:
            return await facts(bus, name)
        except NotRunning as error:
            raise await with_near_name(bus, error) from None
