"""The repository keeps its own rules."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from metaloss.config.registry import REGISTRIES
from tests.helpers import ROOT

SOURCES = sorted([*(ROOT / "metaloss").rglob("*.py"), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_is_public_has_a_docstring(path):
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module)
    for node in module.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
        if public and path.is_relative_to(ROOT / "metaloss"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_component_is_named_after_its_file(kind):
    for name, component in REGISTRIES[kind].items():
        if component.__module__.startswith("metaloss."):
            assert component.__module__.split(".")[-2:] == [kind, name]


def test_only_two_modules_know_gin():
    importing = {
        path.relative_to(ROOT / "metaloss").as_posix()
        for path in (ROOT / "metaloss").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "gin" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gin")
    }
    assert importing == {"config/gin_files.py", "config/registry.py"}


def test_importing_is_silent_and_leaves_slow_libraries_alone():
    slow = ["torchvision", "timm", "matplotlib", "tensorboard", "sklearn", "safetensors", "scipy"]
    slow += ["PIL", "pandas", "pyarrow", "IPython", "lightning", "transformers"]
    code = (
        "import sys; from metaloss.config.registry import REGISTRIES;"
        "assert 'nn' in REGISTRIES['representations'];"  # who reads the registries finds all
        "from metaloss import *; import metaloss.runs.launch;"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
