"""Runs Python in the virtual environment of the tests: `environment.py -m pytest …`.

The environment holds what pyproject.toml names as dependencies and as the extra "test". It lies in the cache, outside the
checkout, and is built anew when that list or the interpreter changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support.cache import cached, recipe_hash

CHECKOUT = Path(__file__).parents[2]


def test_python() -> Path:
    """The interpreter of the environment."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    requirements: list[str] = [*project["dependencies"], *project["optional-dependencies"]["test"]]

    def build(target: Path) -> None:
        # Scripts in bin/ would name the folder that it is built in: everything is run as `python -m`.
        subprocess.run([sys.executable, "-m", "venv", target], check=True, stdin=subprocess.DEVNULL)
        install = [str(target / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(install, check=True, stdin=subprocess.DEVNULL)

    return cached("python", recipe_hash(sys.version, *requirements), build) / "bin/python"


if __name__ == "__main__":
    python = str(test_python())
    os.execv(python, [python, *sys.argv[1:]])
