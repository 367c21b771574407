"""`[cloud-init]`: what is taken, and the one sentence for all that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config.load import check_files, load_config
from vmservice.config.sections.cloud_init import USER_DATA_MAX_BYTES, CloudInitDevice
from vmservice.errors import ConfigError

KEY = '[credentials]\n"ssh.authorized_keys.root" = '


def load(folder: Path, text: str) -> CloudInitDevice | None:
    (folder / "kernel").write_bytes(b"x")
    (folder / "demo.toml").write_text(f'[kernel]\npath = "kernel"\n{text}\n')
    config = load_config("demo", str(folder / "demo.toml"))
    check_files(config)
    return next((device for device in config.devices if isinstance(device, CloudInitDevice)), None)


def test_only_where_it_is_asked_for(tmp_path: Path) -> None:
    assert load(tmp_path, f'{KEY}"ssh-ed25519 AAAA"') is None
    device = load(tmp_path, "[cloud-init]")
    assert device is not None
    assert (device.kind, device.name, device.user_data, device.keys, device.keys_file) == (
        "cloud-init",
        "cloud-init",
        None,
        "",
        None,
    )


def test_the_keys_of_the_credential_are_told_too(tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\n")
    device = load(tmp_path, f'[cloud-init]\nuser_data = "user-data"\n{KEY}"ssh-ed25519 AAAA"')
    assert device is not None
    assert (device.user_data, device.keys, device.keys_file) == (f"{tmp_path}/user-data", "ssh-ed25519 AAAA", None)
    (tmp_path / "keys").write_text("ssh-ed25519 BBBB")
    device = load(tmp_path, f'[cloud-init]\n{KEY}{{ file = "keys" }}')
    assert device is not None
    assert (device.keys, device.keys_file) == ("", f"{tmp_path}/keys")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('user_data = "nowhere"', 'cloud-init.user_data is "{folder}/nowhere", which does not exist'),
        ('user_data = "."', 'cloud-init.user_data is "{folder}/.", which is a directory; it must be a regular file'),
        ('user_data = "long"', f"has {USER_DATA_MAX_BYTES + 1} bytes; at most {USER_DATA_MAX_BYTES} are allowed"),
        ("user_data = 1", "cloud-init.user_data is 1; expected a path"),
        ('user-data = "x"', "cloud-init.user-data is not a known key; did you mean user_data?"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with (tmp_path / "long").open("wb") as file:
        file.truncate(USER_DATA_MAX_BYTES + 1)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[cloud-init]\n{text}")
    assert str(caught.value).startswith(f"{tmp_path}/demo.toml: ")
    assert words.replace("{folder}", str(tmp_path)) in str(caught.value)
