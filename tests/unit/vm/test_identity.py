"""Which settings are named when a guest would have more credentials than it can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmservice.config.load import load_config
from vmservice.errors import ConfigError
from vmservice.vm.identity import smbios_tables

OF_UNIT = "the VM's unit (LoadCredential=, SetCredential= or ImportCredential=)"


@pytest.mark.parametrize(
    ("in_file", "in_unit", "said"),
    [
        (True, False, "{file}: [credentials]: the credentials "),
        (False, True, f"{OF_UNIT}: the credentials "),
        (True, True, f"{{file}}: [credentials] and {OF_UNIT}: the credentials "),
    ],
)
def test_who_has_given_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool, in_unit: bool, said: str
) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('[kernel]\npath = "k"\n' + ('[credentials]\na = "x"\n' if in_file else ""))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path) if in_unit else "")
    with pytest.raises(ConfigError) as caught:
        smbios_tables(load_config("demo", str(file)), {"a": bytes(100_000)})
    assert str(caught.value).startswith(said.format(file=file))
