"""The reader of plain TOML says what tomllib says, or nothing: never more, never something else."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmservice.config import plain_toml

DEMO = (Path(__file__).parents[3] / "packaging/examples/demo.toml").read_text()
PLAIN = """\
# a comment, with "quotes" and = and [brackets]
top = 1
[kernel]
path = "/boot/vmlinuz"   # another
initramfs='/boot/initrd # no comment'
cmdline = "console=ttyS0 root=/dev/vda"
empty = ""
[memory]
size = 536870912
mergeable = true
prefault=false
[[port]]
name = "ä 漢"
forward = ["8080:80/tcp", '22', 5, true]
nothing = []
trailing = [1, 2, ]

  [[port]]
    name = "b"
[credentials]
"ssh.authorized_keys.root" = "ssh-ed25519 AAAA"
'tls.key' = { file = "/etc/web.key" }   # a comment
"one" = {file="a",'b.c' = 1 , "d" = [1, 2]}
none = {}
"" = ""
[service]
"""


def parsed(text: str) -> object:
    """What tomllib makes of it; its own exception class where it refuses."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        return type(error)


def agrees(text: str) -> bool:
    """Whether the reader took the text; then it must have said the same, to the types."""
    taken = plain_toml.read(text)
    if taken is None:
        return False
    assert repr(taken) == repr(parsed(text)), text
    return True


@pytest.mark.parametrize("text", [DEMO, PLAIN, "", "\n", "# only a comment", "[a]", "[[a]]", "a=0"])
def test_what_people_write_is_taken(text: str) -> None:
    assert agrees(text)


@pytest.mark.parametrize(
    "text",
    [
        "[a]\n[a]",
        "[a]\n[[a]]",
        "[[a]]\n[a]",
        "a = 1\n[a]",
        "a = []\n[[a]]",
        "a = [1]\n[[a]]",
        "a = 1\na = 1",
        "a.b = 1",
        "[a.b]",
        '"a" = 1\na = 2',
        '"a".b = 1',
        '"a" 1',
        '"a',
        '"\\u0061" = 1',
        '"""a""" = 1',
        "a = {b = 1,}",
        "a = {b = 1 c = 2}",
        "a = {b = 1, b = 2}",
        "a = {b = {c = 1}}",
        "a = {b.c = 1}",
        "a = {b = 1",
        "a = {",
        "a = {b = 1} x",
        "a = [{b = 1}]\n[[a]]",
        "a = {}\n[a]",
        "a = {}\n[[a]]",
        "a = 01",
        "a = +1",
        "a = -1",
        "a = 1_0",
        "a = 0x1",
        "a = 1.0",
        "a = inf",
        "a = 1979-05-27",
        "a = " + "9" * 19,
        "a = ٣",
        'a = "\\n"',
        'a = """x"""',
        "a = '''x'''",
        'a = "x" y',
        'a = "x',
        "a = [[1]]",
        "a = [\n1]",
        "a = [1 2]",
        "a = [,]",
        "a = [1,,2]",
        "a =",
        "a",
        "= 1",
        "a = true1",
        "a = True",
        "a\t= 1",
        "a = 1\r\n",
        "a = 1 # \x7f",
        "\ufeffa = 1",
        "[a",
        "[]",
        "[[a]",
        "[a]]",
        "[ a ]",
        "[a] x",
    ],
)
def test_what_it_is_not_certain_of_is_left_to_tomllib(text: str) -> None:
    assert plain_toml.read(text) is None


WORDS = ["a", "b", "[", "]", "[[", "]]", "=", '"', "'", "#", ",", " ", "\n", "\n", "0", "1", "12", "true", "false"]
WORDS += [".", "-", "_", "{", "}", "\\", "\t", "\r", "é", "\x85", "\u2028", "\x00", '"x"', "'y'", "[1, 2]", '""']
WORDS += ["a = 1\n", "[t]\n", "[[t]]\n", '"x" = ', "{ a = 1 }", "{", "}"]


@given(st.lists(st.sampled_from(WORDS), max_size=30))
@settings(max_examples=3000, derandomize=True, deadline=None)
def test_pieces_of_toml_in_any_order(words: list[str]) -> None:
    agrees("".join(words))


@given(st.text(max_size=40))
@settings(max_examples=1000, derandomize=True, deadline=None)
def test_any_text(text: str) -> None:
    agrees(text)


def test_mutations_of_what_people_write() -> None:
    rng = random.Random("plain")
    taken = 0
    for _ in range(20_000):
        text = list(rng.choice((DEMO, PLAIN)))
        for _ in range(rng.randrange(1, 4)):
            position = rng.randrange(len(text))
            kind = rng.randrange(3)
            if kind == 0:
                del text[position]
            elif kind == 1:
                text.insert(position, rng.choice(WORDS))
            else:
                text[position] = rng.choice(WORDS)
        taken += agrees("".join(text))
    assert 5_000 < taken < 20_000, "most changes are within strings, comments and names; some are not"
