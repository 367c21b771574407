"""Runs Python in the virtual environment of the tests: `environment.py -m pytest …`.

The environment holds what pyproject.toml names as dependencies and as the extra "test". It lies in the cache, outside the
checkout, and is built anew when that list or the interpreter changes.

systemd-python is taken from the system, where it is Debian's python3-systemd: PyPI has no binary of it, and a build takes a
compiler and headers. That one package is linked in; the environment sees nothing else of the system's.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from support.cache import cached, recipe_hash

CHECKOUT = Path(__file__).parents[2]

# The name of the distribution, and of the package that it installs.
_OF_THE_SYSTEM = ("systemd-python", "systemd")


def test_python() -> Path:
    """The interpreter of the environment."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    requirements: list[str] = [*project["dependencies"], *project["optional-dependencies"]["test"]]

    distribution, package = _OF_THE_SYSTEM
    found = importlib.util.find_spec(package)
    # Resolved: asked from within the environment, it is the link.
    places = [str(Path(place).resolve()) for place in found.submodule_search_locations or ()] if found is not None else []
    if places:
        requirements = [line for line in requirements if not line.startswith(distribution)]

    def build(target: Path) -> None:
        # Scripts in bin/ would name the folder that it is built in: everything is run as `python -m`.
        subprocess.run([sys.executable, "-m", "venv", target], check=True, stdin=subprocess.DEVNULL)
        install = [str(target / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(install, check=True, stdin=subprocess.DEVNULL)
        for place in places:
            (packages,) = target.glob("lib/python*/site-packages")
            (packages / package).symlink_to(place)

    return cached("python", recipe_hash(sys.version, *requirements, *places), build) / "bin/python"


if __name__ == "__main__":
    python = str(test_python())
    os.execv(python, [python, *sys.argv[1:]])
