"""The rooms of the package: what may import what. The graph is drawn from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from metaloss.config.registry import REGISTRIES
from tests.helpers import ROOT

#: Entries at the top of the package, a floor a line; imports run downward alone.
FLOORS = [
    ("__main__",),
    ("testing",),
    ("experiments",),
    ("runs",),
    ("stack",),
    ("learner",),
    ("meta_optimizers",),
    ("engines", "tasks"),
    ("problem", "analysis"),
    ("representations", "backbones", "base_optimizers"),
    ("links", "config", "machine"),
    ("errors",),
]


def imports() -> dict[str, set[str]]:
    """The entries that each entry at the top, and each tool, imports, anywhere in its files."""
    graph: dict[str, set[str]] = {}
    for path in [*(ROOT / "metaloss").rglob("*.py"), *(ROOT / "tools").glob("*.py")]:
        inside, name, *_ = path.relative_to(ROOT).parts
        entry = path.stem if len(path.relative_to(ROOT).parts) == 2 else name
        if entry != "__init__":
            entry = f"tools/{entry}" if inside == "tools" else entry
            found = graph.setdefault(entry, set())
            found |= {word for word in imported(ast.parse(path.read_text())) if word != entry}
    return graph


def imported(module: ast.Module) -> Iterator[str]:
    """The entries of the package that a module's import statements name."""
    entries = {path.stem for path in (ROOT / "metaloss").iterdir()}
    for node in ast.walk(module):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "metaloss":
            names = [f"metaloss.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for package, entry in (n.split(".")[:2] for n in names if n.startswith("metaloss.")):
            if package == "metaloss" and entry in entries:
                yield entry


def test_every_entry_has_its_floor():
    entries = {path.stem for path in (ROOT / "metaloss").iterdir() if path.suffix in ("", ".py")}
    entries -= {"__init__", "py", "__pycache__"}
    assert entries == {entry for floor in FLOORS for entry in floor}


def test_imports_run_downward():
    floor = {entry: i for i, entries in enumerate(FLOORS) for entry in entries}
    upward = [
        (entry, below)
        for entry, found in imports().items()
        for below in found
        if not entry.startswith("tools/") and floor[entry] >= floor[below]
    ]
    assert not upward


def test_floors_and_arrows_are_few():
    graph = imports()
    height: dict[str, int] = {}
    for entry in TopologicalSorter(graph).static_order():  # raises CycleError for a circle
        height[entry] = 1 + max((height[below] for below in graph.get(entry, ())), default=0)
    assert max(height.values()) <= 12
    assert sum(map(len, graph.values())) <= 130


def test_every_room_says_what_is_in_it():
    for folder in (ROOT / "metaloss").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(folder.read_text())), folder


@pytest.mark.parametrize("kind", sorted(REGISTRIES))
def test_every_file_of_a_kind_is_a_component(kind):
    """But for base.py and what lies in a sub-folder."""
    (folder,) = (path for path in (ROOT / "metaloss").rglob(kind) if path.is_dir())
    named = {component.__module__ for component in REGISTRIES[kind].values()}
    package = ".".join(folder.relative_to(ROOT).parts)
    for file in folder.glob("*.py"):
        if file.stem not in ("__init__", "base"):
            assert f"{package}.{file.stem}" in named
