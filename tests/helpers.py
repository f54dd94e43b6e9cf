"""What tests of several rooms share: places, tools, small problems and small runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from metaloss.runs import inspection, pictures

ROOT = Path(__file__).parent.parent

#: A learned loss of 24 parameters, recorded at steps 0, 1, 4 and 20, as format 1 was written.
FORMAT_1 = ROOT / "tests" / "exports" / "format1"


def tool(name: str) -> ModuleType:
    """A file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sketch(path: Path, title: str) -> list[Path]:
    """In place of `pictures.draw`: two files, in the way that a run writes its figures."""
    return pictures._save(path / "figures", {"one.png": b"small", "other.png": b"smaller"})


#: Drawing, and what stands in its place in all tests that are not marked `pictures`.
SKETCHES = (
    (pictures, "draw", sketch),
    (inspection, "show", lambda board, state: None),
)
_DRAWING = [(module, name, getattr(module, name)) for module, name, _ in SKETCHES]


@contextmanager
def drawn() -> Iterator[None]:
    """Within it runs draw their pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in _DRAWING:
            patch.setattr(module, name, function)
        yield


def thinned(product: Iterable[tuple], keep: Callable[..., Any]) -> list:
    """The cases of a product; those that `keep` does not hold of are left to the full run."""
    return [pytest.param(*case, marks=() if keep(*case) else pytest.mark.full) for case in product]
