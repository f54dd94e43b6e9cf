"""What tests of several rooms share: places, tools, small problems and small runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent

#: A learned loss of 24 parameters, recorded at steps 0, 1, 4 and 20, as format 1 was written.
FORMAT_1 = ROOT / "tests" / "exports" / "format1"


def tool(name: str) -> ModuleType:
    """A file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
