"""How sentences show values, and how they come by the file that they are about."""

from __future__ import annotations

import pytest

from vmservice.errors import (
    ConfigError,
    ConfigErrors,
    FileError,
    HostError,
    Naming,
    NamingKey,
    quoted,
    raise_all,
    seconds,
    sentences,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("größe", '"größe"'),
        ('a "b" \\c', '"a \\"b\\" \\\\c"'),
        ("a\tb\nc\rd", '"a\\tb\\nc\\rd"'),
        ("a\x1b[31mb\0", '"a\\u001B[31mb\\u0000"'),
        ("a\udcffb", '"a\\uDCFFb"'),
        ("x" * 60, f'"{60 * "x"}"'),
        ("x" * 61, f'"{60 * "x"}…"'),
    ],
)
def test_a_text_is_shown_as_toml_has_it_on_one_line(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_one_second_is_one() -> None:
    assert [seconds(count) for count in (0, 0.5, 1, 1.0, 2, 20.0)] == [
        *("0 seconds", "0.5 seconds", "1 second", "1 second", "2 seconds", "20 seconds")
    ]


def test_an_error_of_the_configuration_has_its_place_once() -> None:
    with pytest.raises(ConfigError, match=r"^/a\.toml: kernel\.path: no Linux$"), Naming("/a.toml"), NamingKey("kernel.path"):
        raise ConfigError("no Linux")
    with pytest.raises(ConfigError, match=r'^/a\.toml: kernel\.path is "/x\\ny", which is empty$'):  # noqa: SIM117
        with Naming("/a.toml"), NamingKey("kernel.path"):
            raise FileError("kernel", "/x\ny", "is empty")
    with pytest.raises(ConfigError, match=r"^/a\.toml: cpus\.max is 0$"), Naming("/a.toml"):
        raise ConfigError("/a.toml: cpus.max is 0")
    with pytest.raises(HostError, match=r"^in use$"), Naming("/a.toml"):
        raise HostError("in use")


@pytest.mark.parametrize("text", ["kernel.path is 1", "kernel.path: no Linux"])
def test_an_error_names_the_file_that_its_key_is_from(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^/b\.toml: {text}$"), Naming("/a.toml", {"kernel.path": "/b.toml"}):
        raise ConfigError(text)
    with pytest.raises(ConfigError, match=rf"^/a\.toml: {text}$"), Naming("/a.toml", {"kernel.pat": "/b.toml"}):
        raise ConfigError(text)
    with pytest.raises(ConfigError, match=r"^/b\.toml: disk root: /x is empty$"), Naming("/a.toml", {"disk root": "/b.toml"}):
        raise ConfigError("disk root: /x is empty")


def test_several_are_all_told_and_the_first_where_there_is_one_line() -> None:
    errors = [ConfigError(text) for text in ("a", "b", "c")]
    with pytest.raises(ConfigErrors) as caught:
        raise_all(errors)
    assert str(caught.value) == "a (and 2 more mistakes)"
    assert sentences(caught.value) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"^a$") as one:
        raise_all(errors[:1])
    assert sentences(one.value) == ["a"]
    with pytest.raises(ConfigErrors, match=r"^a \(and 1 more mistake\)$"):
        raise_all(errors[:2])
    raise_all([])


def test_nothing_that_moves_a_cursor_is_in_a_sentence() -> None:
    assert str(HostError("no \x1b[31m/a\nb\udc80 – ä")) == "no \\u001B[31m/a\\u000Ab\\uDC80 – ä"
