"""The linters, and the rules of the design that no linter knows: who imports whom, and what a start may not wait for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SOURCES = sorted((CHECKOUT / "vmservice").rglob("*.py"))

# Package → packages that it may import. devices never see kvm, arch or vm: a device is given its ports.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors", "host"},
    "kvm": {"errors"},
    "host": {"errors"},
    "memory": {"errors"},
    "acpi": {"errors"},
    # The tables' place and content follow from the layout and the CPUs.
    "arch": {"errors", "memory", "kvm", "acpi"},
    "boot": {"errors", "host", "memory", "arch"},
    "devices": {"errors", "memory", "acpi"},
    # What devices are plugged into; a ring owner speaks with a back end.
    "board": {"errors", "host", "kvm", "memory", "acpi", "arch", "devices"},
    "plug": {"errors", "config", "host", "devices", "board"},
    "vm": {"errors", "config", "host", "kvm", "memory", "acpi", "arch", "boot", "devices", "board", "plug"},
    "control": {"errors", "host", "vm"},
    "client": {"errors", "config", "host", "vm", "control"},
    "manager": {"errors", "config", "host", "control", "client"},
    "image": {"errors"},
    "create": {"errors", "config", "host", "image", "check", "client"},
}
# These put everything together.
FREE_PACKAGES = {"service", "cli", "__main__", "__init__", "check"}

# What a start does not wait for: it is imported inside the function that needs it, or when the guest runs already.
SLOW_MODULES = {
    *("argparse", "asyncio", "collections", "contextlib", "dataclasses", "inspect", "json", "logging", "pathlib", "re"),
    *("shutil", "subprocess", "tempfile", "threading", "tomllib", "typing", "dbus_next", "elftools", "systemd"),
}
# Imported when the guest runs already, or never on the way there.
OFF_THE_FAST_PATH = {
    *("boot/elf.py", "host/terminal.py", "service/keyboard.py", "service/loop.py"),
    *("service/guest_link.py", "service/guest_ready.py", "service/reopening.py", "service/manager_daemon.py"),
    *("service/disk_daemon.py", "service/dump.py", "service/sleep.py", "service/stop.py", "service/watchdog.py"),
}
OFF_THE_FAST_PATH_PACKAGES = {"check", "client", "control", "create", "image", "manager"}

LONGEST_FILE = 450


def imported(node: ast.AST) -> set[str]:
    """The modules that one import statement names, with their packages."""
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return set()


def at_module_level(tree: ast.Module) -> set[str]:
    """What importing the module imports: not what functions import, and not what only the type checker sees."""
    found: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
            continue
        found |= imported(node)
        todo += ast.iter_child_nodes(node)
    return found


def relative(source: Path) -> str:
    return source.relative_to(CHECKOUT / "vmservice").as_posix()


def package(source: Path) -> str:
    return relative(source).partition("/")[0].removesuffix(".py")


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=CHECKOUT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check() -> None:
    run("ruff", "check", "--quiet", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--check", "--quiet", "--diff", ".")


def test_mypy() -> None:
    run("mypy")


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_a_package_imports_only_what_it_may(source: Path) -> None:
    if package(source) in FREE_PACKAGES:
        return
    modules = set().union(*(imported(node) for node in ast.walk(ast.parse(source.read_text()))))
    packages = {module.split(".")[1] for module in modules if module.startswith("vmservice.")} - {package(source)}
    assert packages <= MAY_IMPORT[package(source)]


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_a_start_waits_for_no_slow_import(source: Path) -> None:
    if relative(source) in OFF_THE_FAST_PATH or package(source) in OFF_THE_FAST_PATH_PACKAGES:
        return
    packages = {module.partition(".")[0] for module in at_module_level(ast.parse(source.read_text()))}
    assert not packages & SLOW_MODULES


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_a_file_says_what_it_is_and_fits_a_head(source: Path) -> None:
    text = source.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= LONGEST_FILE


def test_what_is_on_the_way_to_the_guest_is_known() -> None:
    """Every exempt file exists: a renamed one would take its exemption along unseen."""
    names = {relative(source) for source in SOURCES}
    assert names >= OFF_THE_FAST_PATH


def test_the_path_to_the_first_instruction_loads_nothing_slow() -> None:
    """The rule above, looked at from the other end: what an interpreter has loaded when the builder is imported."""
    program = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r});"
        " import vmservice.cli, vmservice.service.main, vmservice.vm.builder; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not SLOW_MODULES & set(loaded)
