"""Each claim of the documents on security names its test, and there is such a test."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["docs/threat-model.md", "docs/accounts.md"])
def test_every_test_that_is_named_exists(document: str) -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", (CHECKOUT / document).read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (CHECKOUT / file).read_text(), f"{document} names {file}::{test}"
