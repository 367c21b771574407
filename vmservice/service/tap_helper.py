"""`vmservice make-tap NAME:DEVICE [--remove]`: what vm-tap@NAME:DEVICE.service runs as root, before the VM and behind it.

What is to be made is in the VM's configuration. start-back-ends has said in the environment whose it is to be, and which tap is
to be removed: the configuration may be another one by then.
"""

from __future__ import annotations

import os

from vmservice.config.load import load_config
from vmservice.config.names import config_path
from vmservice.errors import ConfigError, HostError, UsageError, quoted
from vmservice.host import tap_maker
from vmservice.plug.network import ENVIRONMENT_ACCOUNT, ENVIRONMENT_TAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmservice.config.sections.network import NetworkDevice


def main(words: Sequence[str]) -> int:
    names = [word for word in words if word != "--remove"]
    if len(names) != 1 or len(words) - len(names) > 1 or ":" not in names[0]:
        raise UsageError("usage: vmservice make-tap NAME:DEVICE [--remove]")
    name, _, device = names[0].partition(":")
    what = f"network {device}"
    if "--remove" in words:
        tap_maker.remove(_told(ENVIRONMENT_TAP, names[0]), what)
        return os.EX_OK
    account = _told(ENVIRONMENT_ACCOUNT, names[0])
    network = _network(name, device)
    tap_maker.make(
        network.tap,
        what,
        uid=_uid(account),
        queues=network.queues,
        mac=network.mac,
        bridge=network.bridge,
        mtu=network.mtu,
    )
    return os.EX_OK


def _told(variable: str, instance: str) -> str:
    try:
        return os.environ[variable]
    except KeyError:
        raise UsageError(
            f"make-tap is what vm-tap@{instance}.service runs, for which start-back-ends sets {variable}; it is not set here"
        ) from None


def _network(name: str, device: str) -> NetworkDevice:
    path = config_path(name, user=False)
    for one in load_config(name, path).devices:
        if one.name == device and getattr(one, "makes_tap", False):
            return one  # type: ignore[return-value]
    raise ConfigError(f"{path}: there is no [[network]] called {device} for which a tap is to be made")


def _uid(account: str) -> int:
    """Of an account that the name service knows: one of a unit with DynamicUser= is there only while that runs."""
    import pwd

    if account.isdecimal():
        return int(account)
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        raise HostError(f"there is no account {quoted(account)}, for which the tap is to be made") from None
