"""Whether a file can be read by the account that a VM runs as, asked by whoever may become that account: root."""

from __future__ import annotations

import os
import subprocess

from vmservice.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.config.load import Config

_DEFAULT_ACCOUNT = "vmservice"
_SYSTEMCTL_SEC = 10


def check_readable(config: Config) -> None:
    """ConfigError where a file of [credentials] is closed to the account of vm@NAME.service; nothing for who is not root.

    What the unit's sandbox hides is not seen here: homes, and /tmp.
    """
    files = [(one.name, one.file) for one in config.credentials if one.file is not None]
    if not files or os.geteuid() != 0:
        return
    name = account_of_unit(config.name)
    ids = _ids(name)
    if ids is None:
        return
    uid, gid, groups = ids
    for credential, file in files:
        words = ["test", "-r", file]
        if subprocess.run(words, check=False, user=uid, group=gid, extra_groups=groups, cwd="/").returncode != 0:
            raise ConfigError(
                f'{config.path}: credentials."{credential}": the file {file} is not readable for the account {name}, which the'
                " VM runs as; it needs that, or LoadCredential= in a drop-in of the unit, which systemd reads as root"
            )


def account_of_unit(name: str) -> str:
    """What the VM's unit has as User=, or the one that it is shipped with where systemd does not say."""
    words = ["systemctl", "show", "--property=User", "--value", f"vm@{name}.service"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=_SYSTEMCTL_SEC)
    except (OSError, subprocess.TimeoutExpired):
        return _DEFAULT_ACCOUNT
    return done.stdout.strip() or _DEFAULT_ACCOUNT


def _ids(name: str) -> tuple[int, int, list[int]] | None:
    """(uid, gid, groups); None for an account that is not there."""
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(name, entry.pw_gid)
