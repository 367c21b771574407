"""`vmservice ssh NAME [COMMAND…]`: ssh(1), run in this process' place, with the way to the VM's guest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from vmservice.client import interrupts
from vmservice.client.bus import connected_bus
from vmservice.client.vms import NotRunning, facts, with_near_name
from vmservice.errors import HostError, HostFacilityMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.client.vms import DeviceFacts, Facts

# systemd's own way to ssh over vsock, since 256: systemd-ssh-proxy(1).
PROXY = "/usr/lib/systemd/systemd-ssh-proxy"
# For hosts with an older systemd.
_SOCAT = "/usr/bin/socat"


def run_ssh(target: str, command: Sequence[str], *, user: bool) -> NoReturn:
    """Become ssh, to `target`, which is NAME or USER@NAME; its exit status is ours.

    NotRunning, HostFacilityMissing or HostError where that cannot be.
    """
    login, _, name = target.rpartition("@")
    vm = interrupts.run(_ask(name, user=user))
    line = ssh_command(vm, login, command)
    try:
        os.execvp(line[0], line)
    except FileNotFoundError:
        raise HostFacilityMissing("ssh is not installed; Debian has it in openssh-client") from None
    except OSError as error:
        raise HostError.from_os("cannot run ssh", error) from None


def ssh_command(vm: Facts, login: str, command: Sequence[str], proxies: Sequence[str] = (PROXY, _SOCAT)) -> list[str]:
    """The command line; `proxies` are systemd's and socat, as paths that need not be there."""
    options = ["-l", login] if login else []
    # The guest's key goes by the VM's name: a number, or a port of the host, may be another VM's tomorrow.
    options += ["-o", f"HostKeyAlias=vm-{vm.name}", "-o", "CheckHostIP=no"]
    devices = vm.devices or ()
    cid = next((one.details.get("cid") for one in devices if one.kind == "vsock"), None)
    if cid:
        return ["ssh", *options, *_vsock_options(int(str(cid)), proxies), f"vsock/{cid}", *command]
    for network in (one for one in devices if one.kind == "network"):
        address, port = _forwarded(network)
        if port:
            return ["ssh", *options, "-p", port, address, *command]
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


def _forwarded(network: DeviceFacts) -> tuple[str, str]:
    """(address, port) of the host that lead to the guest's port 22, of what `forward` says: [ADDRESS:]PORT[:PORT][/PROTOCOL].

    Empty where none does.
    """
    for rule in str(network.details.get("forward", "")).replace(",", " ").split():
        ports, _, protocol = rule.partition("/")
        host, _, guest = ports.rpartition(":")
        if guest == "22" and protocol in ("", "tcp"):
            address, _, port = host.rpartition(":")
            return address.strip("[]") or "localhost", port or guest
    return "", ""


async def _ask(name: str, *, user: bool) -> Facts:
    async with connected_bus(user=user) as bus:
        try:
            return await facts(bus, name)
        except NotRunning as error:
            raise await with_near_name(bus, error) from None
