"""The public API tells what it does: docstrings, shapes of tensors, errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap

import pytest
from torch import nn

import metaloss
from metaloss import errors
from metaloss.config.registry import REGISTRIES
from tests.helpers import ROOT

#: What users type against; pyproject.toml holds the same modules to mypy's strict checks.
MODULES = [
    "metaloss.config.configuration",
    "metaloss.errors",
    "metaloss.representations.saved.learned_loss",
    "metaloss.runs.launch",
    "metaloss.runs.recorder",
    "metaloss.learner",
    "metaloss.links",
    "metaloss.problem.meta_parameters",
    "metaloss.problem.problem",
    "metaloss.config.registry",
    "metaloss.runs.runner",
    "metaloss.stack",
    "metaloss.testing",
    "metaloss.runs.trained.model",
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "metaloss").rglob("base.py"))
    ),
]
#: How a docstring tells a tensor's shape: [batch, C], a scalar, of the shapes of θ.
SHAPE = re.compile(r"\[[^\]]*\]|scalar|shape")
INPUT_ERRORS = {
    name
    for module in map(importlib.import_module, MODULES)
    for name, item in vars(module).items()
    if inspect.isclass(item) and issubclass(item, errors.InputError)
}


def public(module):
    """The public classes and functions that a module defines (a package: that it offers), named."""
    module = importlib.import_module(module)
    names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
    for name in names:
        item = inspect.unwrap(vars(module)[name]) if callable(vars(module)[name]) else None
        defined = getattr(item, "__module__", "").startswith(module.__name__)
        if defined and (inspect.isclass(item) or inspect.isfunction(item)):
            yield f"{module.__name__}.{name}", item


NAMES = dict(found for module in MODULES for found in public(module))
FUNCTIONS = {
    **{name: item for name, item in NAMES.items() if inspect.isfunction(item)},
    **{
        f"{name}.{method}": function
        for name, item in NAMES.items()
        if inspect.isclass(item)
        for method, function in vars(item).items()
        if inspect.isfunction(function)
        and (method == "forward" or not hasattr(nn.Module, method))
        and method[0] != "_"
    },
}


def test_the_modules_are_those_that_mypy_checks_strictly():
    text = (ROOT / "pyproject.toml").read_text()
    (block,) = re.findall(r"\[\[tool.mypy.overrides\]\]\nmodule = \[(.*?)\]", text, re.DOTALL)
    patterns = [re.escape(name).replace(r"\*", ".*") for name in re.findall(r'"(.*?)"', block)]
    for module in ("metaloss", "metaloss.testing.base", *MODULES):
        assert any(re.fullmatch(p, module) for p in patterns) or module == "metaloss.testing"


@pytest.mark.parametrize("name", [*metaloss.__all__])
def test_a_public_name_has_a_docstring(name):
    assert inspect.getdoc(getattr(metaloss, name))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_class_or_function_has_a_docstring_of_its_own(name):
    assert NAMES[name].__doc__


@pytest.mark.parametrize("kind", REGISTRIES)
def test_components_have_docstrings(kind):
    for name, component in REGISTRIES[kind].items():
        assert component.__doc__, name


def docstring(name):
    """Of a function or method; where that has none, its contract's or its class's."""
    own = inspect.getdoc(FUNCTIONS[name])
    owner = NAMES.get(name.rpartition(".")[0])
    inherited = inspect.getdoc(getattr(owner, name.rpartition(".")[2])) if owner else None
    return own or inherited or (inspect.getdoc(owner) if owner else "")


@pytest.mark.parametrize(
    "name", [name for name, f in FUNCTIONS.items() if "Tensor" in str(inspect.signature(f))]
)
def test_a_function_of_tensors_tells_their_shapes(name):
    assert SHAPE.search(docstring(name))


def raised(item):
    """The InputErrors that a function, or a class's constructor, raises itself."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(item))).body
    if isinstance(node, ast.ClassDef):
        constructors = ("__init__", "__post_init__")
        parts = [part for part in node.body if getattr(part, "name", "") in constructors]
    else:
        parts = [node]
    for part in parts:
        for raising in filter(lambda n: isinstance(n, ast.Raise), ast.walk(part)):
            name = getattr(getattr(raising.exc, "func", None), "id", None)
            if name in INPUT_ERRORS:
                yield name


def names_all(text, found):
    """Whether a docstring's section on errors has each of them, or InputError for all."""
    section = text.partition("Raises:")[2]
    return "InputError" in section or all(error in section for error in found)


@pytest.mark.parametrize("name", [name for name, f in FUNCTIONS.items() if any(raised(f))])
def test_a_function_names_the_errors_that_it_raises(name):
    assert names_all(docstring(name), raised(FUNCTIONS[name]))


CLASSES = {name: item for name, item in NAMES.items() if inspect.isclass(item)}


@pytest.mark.parametrize("name", [name for name, item in CLASSES.items() if any(raised(item))])
def test_a_class_names_the_errors_that_its_constructor_raises(name):
    assert names_all(CLASSES[name].__doc__, raised(CLASSES[name]))
