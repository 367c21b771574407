"""Who the guest is, and what it is told at its start: the SMBIOS tables of one VM."""

from __future__ import annotations

import vmservice
from vmservice.arch.x86_64 import smbios
from vmservice.errors import ConfigError
from vmservice.host import unit_credentials
from vmservice.host.machine_id import machine_id, uuid5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmservice.config.load import Config

_NO_MACHINE_ID = bytes(16)


def product_uuid(config: Config) -> bytes:
    """The 16 bytes that the configuration says, or that follow from this host's machine id and the VM's name."""
    return config.smbios.uuid or uuid5(machine_id() or _NO_MACHINE_ID, config.name)


def smbios_tables(config: Config, credentials: Mapping[str, bytes]) -> bytes:
    """The tables of a VM with these credentials; ConfigError where they are more than a guest can read."""
    strings = [smbios.credential_string(name, value) for name, value in credentials.items()]
    tables = smbios.tables(
        uuid=product_uuid(config), serial=config.smbios.serial, version=vmservice.__version__, oem_strings=strings
    )
    try:
        smbios.check_room(len(tables), strings)
    except ConfigError as error:
        raise ConfigError(f"{_origin(config)}: {error}") from None
    return tables


def _origin(config: Config) -> str:
    """Where the credentials are from: the file, the VM's unit, or both."""
    parts = [f"{config.path}: [credentials]"] if config.credentials else []
    if unit_credentials.are_there():
        parts.append(f"the VM's unit ({unit_credentials.SETTINGS})")
    return " and ".join(parts) or config.path
