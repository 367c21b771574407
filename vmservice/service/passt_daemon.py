"""`vmservice passt-daemon NAME:DEVICE [--user]`: what vm-passt@NAME:DEVICE.service runs, which becomes passt.

What passt forwards is in the VM's configuration. The listening socket is descriptor 3, from systemd, and passt takes a socket
that is connected: the VM's connection is accepted here, and it is the only one. passt ends with it, and systemd listens again.
"""

from __future__ import annotations

import os
import socket

from vmservice.config.forward import parse_forward
from vmservice.config.load import load_config
from vmservice.config.names import config_path
from vmservice.errors import ConfigError, HostError, UsageError
from vmservice.host.passt import PASST, check_ports
from vmservice.plug import passt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.config.sections.network import NetworkDevice

_LISTENER = 3
# Where the guest finds the host's name server if that is at a loopback address, as systemd-resolved's (127.0.0.53). It is
# link-local, so it is no other host's address.
DNS_ADDRESS = "169.254.1.1"


def main(words: Sequence[str]) -> int:
    names = [word for word in words if word != "--user"]
    if len(names) != 1 or len(words) - len(names) > 1 or ":" not in names[0]:
        raise UsageError("usage: vmservice passt-daemon NAME:DEVICE [--user]")
    if os.environ.get("LISTEN_FDS") != "1":
        raise HostError("the socket of the network is missing: systemd passes it, as vm-passt@.socket says")
    with socket.socket(fileno=_LISTENER) as listener:
        connection = listener.accept()[0]
    # Whatever is wrong from here on ends the connection: the VM is told, and systemd does not start this unit again for it.
    with connection:
        name, _, device = names[0].partition(":")
        network = _network(config_path(name, user="--user" in words), name, device)
        is_by_vhost_user = passt.is_by_vhost_user(network)
        for entry in map(parse_forward, network.forward):
            check_ports(device, entry.protocol, entry.address, entry.ports)
        connection.set_inheritable(True)
        command = passt_command(network, connection.fileno(), is_by_vhost_user=is_by_vhost_user)
        os.execv(command[0], command)


def _network(path: str, name: str, device: str) -> NetworkDevice:
    config = load_config(name, path)
    for one in config.devices:
        if one.name == device and one.plug == passt.__name__:
            return one  # type: ignore[return-value]  # that plug has no other sections
    raise ConfigError(f'{path}: there is no [[network]] called {device} with mode = "passt"')


def passt_command(network: NetworkDevice, connection: int, *, is_by_vhost_user: bool) -> list[str]:
    """passt's command line for one network.

    Without the options about the gateway, its address would lead to 127.0.0.1 of the host, and the guest to whatever listens
    there in the belief that it is among itself.
    """
    command = [PASST, "--foreground", "--fd", str(connection), "--mtu", str(network.mtu)]
    if is_by_vhost_user:
        command.append("--vhost-user")
    command += ["--no-map-gw", "--dns-forward", DNS_ADDRESS]
    for entry in map(parse_forward, network.forward):
        ports = f"{entry.host}-{entry.ports[-1]}:{entry.guest}-{entry.guest + entry.count - 1}"
        address = f"{entry.address}/" if entry.address else ""
        command += [f"--{entry.protocol}-ports", address + ports]
    return command
