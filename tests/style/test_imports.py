"""No module imports itself by way of others: not at its top, not in a function, and not for the type checker."""

from __future__ import annotations

import ast
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def imports() -> dict[str, set[str]]:
    """Module → the modules of ours that it imports, wherever in its text."""
    names = {}
    for source in (CHECKOUT / "vmservice").rglob("*.py"):
        name = ".".join(source.relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
        names[name] = source
    found = {}
    for name, source in names.items():
        wanted = set()
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` is of the module, `from module import name` of the other.
                wanted |= {f"{node.module}.{alias.name}" for alias in node.names}
                wanted.add(node.module)
            elif isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
        found[name] = {one for one in wanted if one in names and one != name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, Depth-first search and linear graph algorithms)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = lowest[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], index[other])
        if lowest[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e2"}, "e2": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "e2"]]


def test_no_import_circle() -> None:
    graph = imports()
    assert len(graph) > 100
    assert circles(graph) == []
