"""The page in Cockpit, as files: whole, and without what its content security policy or a guest's hostile text would break.

What it does is looked at in a browser, by tests/system/test_cockpit.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "packaging/cockpit"
SCRIPTS = sorted(PAGE.glob("*.js"))
LINES_LIMIT = 450


def test_every_file_is_used() -> None:
    """index.html begins with one script, which imports the others."""
    index = (PAGE / "index.html").read_text()
    named = set(re.findall(r'(?:src|href)="([^"]+)"', index)) - {"../base1/cockpit.js"}
    imported = {name for script in SCRIPTS for name in re.findall(r'^import .* from "\./(.+)";$', script.read_text(), re.M)}
    there = {path.name for path in PAGE.iterdir()}
    assert named | imported | {"index.html", "manifest.json"} == there


def test_the_manifest_is_one() -> None:
    manifest = json.loads((PAGE / "manifest.json").read_text())
    assert manifest["menu"]["index"]["label"] == "VM services"


def test_nothing_is_inline() -> None:
    """No script, style or listener in the HTML: the policy forbids them."""
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|<script>| style=| on\w+=", index)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_text_stays_text(script: Path) -> None:
    """Nothing that a guest or another program says is parsed as HTML or run."""
    text = script.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function", text)
    assert text.startswith("/* ")


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_no_file_is_too_long(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LINES_LIMIT
    assert max(map(len, lines)) <= 140
