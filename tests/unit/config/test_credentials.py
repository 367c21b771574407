"""[credentials] and [smbios]: what is taken, and sentences that hold nothing secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmservice.config.credentials import read_values
from vmservice.config.load import Config, check_files, load_config
from vmservice.errors import ConfigError

KERNEL = '[kernel]\npath = "vmlinuz"\n'
SECRET = "hunter2-and-more"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "vmlinuz").write_text("looked for, and not read")
    return tmp_path / "demo.toml"


def load(file: Path, text: str) -> Config:
    file.write_text(KERNEL + text)
    return load_config("demo", str(file))


def refusal(file: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_files(load(file, text))
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_text_and_files(file: Path) -> None:
    (file.parent / "key").write_bytes(b"\0\xffbinary\n")
    config = load(
        file,
        '[credentials]\nplain = "a b"\n"ssh.authorized_keys.root" = "ssh-ed25519 …"\n'
        '\'tls.key\' = { file = "key" }\nempty = ""\n',
    )
    assert read_values(config.credentials, config.naming()) == {
        "plain": b"a b",
        "ssh.authorized_keys.root": "ssh-ed25519 …".encode(),
        "tls.key": b"\0\xffbinary\n",
        "empty": b"",
    }


def test_a_text_of_several_lines(file: Path) -> None:
    config = load(file, '[credentials]\n"a.b" = """\none\ntwo\n"""\n')
    assert read_values(config.credentials, config.naming()) == {"a.b": b"one\ntwo\n"}


LONG = "n" * 256
FORM = 'must be a string, or { file = "…" } with the path of a file that has it'
NAME_WORDS = "cannot be the name of a credential; it must be 1 to 255 printable characters of ASCII, without : and /"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'tls.key = "{SECRET}"', 'credentials."tls" is a table without file; a name with dots is in quotes: "tls.key" = …'),
        (f'a = ["{SECRET}"]', f'credentials."a" {FORM}'),
        ("a = 5", f'credentials."a" {FORM}'),
        ("a = {}", f'credentials."a" {FORM}'),
        ('a = { file = "" }', f'credentials."a" {FORM}'),
        ("a = { file = 5 }", f'credentials."a" {FORM}'),
        (f'a = {{ file = "x", text = "{SECRET}" }}', f'credentials."a" {FORM}'),
        (f'"" = "{SECRET}"', f'credentials."" {NAME_WORDS}'),
        (f'"." = "{SECRET}"', f'credentials."." {NAME_WORDS}'),
        (f'".." = "{SECRET}"', f'credentials.".." {NAME_WORDS}'),
        (f'"a/b" = "{SECRET}"', f'credentials."a/b" {NAME_WORDS}'),
        (f'"a:b" = "{SECRET}"', f'credentials."a:b" {NAME_WORDS}'),
        (f'"ä" = "{SECRET}"', f'credentials."ä" {NAME_WORDS}'),
        (f'"a\\tb" = "{SECRET}"', f'credentials."a\\tb" {NAME_WORDS}'),
        (f'{LONG} = "{SECRET}"', f'credentials."{LONG[:255]}…" {NAME_WORDS}'),
        (
            f'a = "{"x" * ((1 << 20) - 120)}"\nb = {{ file = "." }}',
            'credentials."b".file is "{folder}/.", which is a directory; it must be',
        ),
        ('a = { file = "nowhere" }', 'credentials."a".file is "{folder}/nowhere", which does not exist'),
    ],
)
def test_what_is_refused_and_that_no_sentence_has_a_value(file: Path, text: str, words: str) -> None:
    assert refusal(file, f"[credentials]\n{text}\n").startswith(words.replace("{folder}", str(file.parent)))


@pytest.mark.parametrize(
    "text",
    [
        f'credentials = "{SECRET}"\n',
        f'[credential]\na = "{SECRET}"\n',
        f'[credentials]\na = "{SECRET}"\na = "{SECRET}"\n',
        f'[credentials]\na = "{SECRET}\n',
        f"[credentials]\na = {SECRET}\n",
        f'[[credentials]]\na = "{SECRET}"\n',
    ],
)
def test_a_wrong_file_shows_nothing_secret_either(file: Path, text: str) -> None:
    file.write_text(text + KERNEL if text.startswith("credentials") else KERNEL + text)
    with pytest.raises(ConfigError) as caught:
        load_config("demo", str(file))
    assert SECRET not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another account")
def test_a_file_that_this_account_may_not_read(file: Path) -> None:
    key = file.parent / "key"
    key.write_text(SECRET)
    key.chmod(0o600)
    config = load(file, '[credentials]\na = { file = "key" }\n')
    for folder in (file.parent, *file.parent.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        with pytest.raises(
            ConfigError, match=r'credentials\."a"\.file is ".*/key", which is not readable for the account (nobody|nfsnobody)'
        ):
            check_files(config)
    finally:
        os.seteuid(0)


def test_a_file_that_is_too_large(file: Path) -> None:
    with (file.parent / "key").open("wb") as key:
        key.truncate((1 << 20) + 1)
    words = f'"{file.parent}/key", which has 1048577 bytes; systemd takes at most 1048576'
    assert refusal(file, '[credentials]\na = { file = "key" }\n') == f'credentials."a".file is {words}'


@pytest.mark.parametrize("section", ['[credentials]\na = "b"\n', "[smbios]\n"])
def test_a_firmware_has_tables_of_its_own(file: Path, section: str) -> None:
    file.write_text('[firmware]\npath = "x"\n' + section)
    with pytest.raises(ConfigError, match=r"is for a VM with \[kernel\]"):
        load_config("demo", str(file))


def test_smbios(file: Path) -> None:
    config = load(file, '[smbios]\nuuid = "00112233-4455-6677-8899-AABBccddeeff"\nserial = "S 1"\n')
    assert config.smbios.uuid == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert config.smbios.serial == "S 1"
    assert (load(file, "").smbios.uuid, load(file, "").smbios.serial) == (None, "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('uuid = "00112233445566778899aabbccddeeff"', "expected a UUID like"),
        ('uuid = "0011223-34455-6677-8899-aabbccddeeff"', "expected a UUID like"),
        ('uuid = "0011223g-4455-6677-8899-aabbccddeeff"', "expected a UUID like"),
        ('uuid = "00000000-0000-0000-0000-000000000000"', "not all 0 or all f"),
        ('uuid = "ffffffff-ffff-ffff-ffff-ffffffffffff"', "not all 0 or all f"),
        ("uuid = 5", "expected a string"),
        ('serial = "é"', "at most 64 printable characters of ASCII"),
        (f'serial = "{"s" * 65}"', "at most 64 printable characters of ASCII"),
    ],
)
def test_smbios_that_is_refused(file: Path, line: str, words: str) -> None:
    assert words in refusal(file, f"[smbios]\n{line}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[service]\nready = "guest"\n', 'service.ready is "guest", and the guest says so over vsock: add [vsock]'),
        ('[service]\nready = "soon"\n', 'service.ready is "soon"; expected "vmm" or "guest"'),
        ("[service]\nready_timeout = 0\n", "service.ready_timeout is 0; expected a whole number from 1 to 86400"),
    ],
)
def test_readiness_that_is_refused(file: Path, text: str, words: str) -> None:
    assert refusal(file, text) == words
