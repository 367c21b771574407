"""All credentials of the guest, read once a process, as its account may: those of the configuration, and those of the unit.

A reset gives the guest the same ones again. Nothing here says a value.
"""

from __future__ import annotations

from vmservice.host import unit_credentials

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmservice.config.load import Config
    from vmservice.host.consoles.base import Log


def collect(config: Config, log: Log, more: Mapping[str, bytes]) -> dict[str, bytes]:
    """By name: `more`, which the VMM itself gives, then the unit's, then the configuration's; ConfigError or HostError.

    Where two have one of the same name, the first holds: a drop-in of the unit changes what the file says, as drop-ins do.
    """
    found = dict(more)
    if unit_credentials.are_there():
        _add(found, _of_unit(config, log), "the unit", log)
    if config.credentials:
        from vmservice.config.credentials import read_values

        _add(found, read_values(config.credentials, config.naming()), config.path, log)
    return found


def _of_unit(config: Config, log: Log) -> dict[str, bytes]:
    from vmservice.config.credentials import SIZE_MAX_BYTES, is_name

    given = unit_credentials.unit_credentials(SIZE_MAX_BYTES)
    if config.kernel is None and given:
        log.warning("the credentials of the unit do not reach the guest: a firmware makes SMBIOS tables of its own")
        return {}
    return {name: value for name, value in given.items() if is_name(name)}


def _add(found: dict[str, bytes], values: Mapping[str, bytes], origin: str, log: Log) -> None:
    for name in values:
        if name in found:
            log.info(f"the credential {name} of {origin} is not used: there is another one of that name")
    for name, value in values.items():
        found.setdefault(name, value)
