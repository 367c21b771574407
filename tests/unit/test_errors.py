"""How sentences show values, and how they come by the file that they are about."""

from __future__ import annotations

import pytest

from vmservice.errors import ConfigError, HostError, Naming, quoted, seconds


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
    with pytest.raises(ConfigError, match=r"^/a\.toml: kernel\.path: no such file$"), Naming("/a.toml"), Naming("kernel.path"):
        raise ConfigError("no such file")
    with pytest.raises(ConfigError, match=r"^/a\.toml: cpus\.max is 0$"), Naming("/a.toml"):
        raise ConfigError("/a.toml: cpus.max is 0")
    with pytest.raises(HostError, match=r"^in use$"), Naming("/a.toml"):
        raise HostError("in use")
