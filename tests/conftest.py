"""Every test starts from the same seed, on one thread, with nothing bound in gin."""

import importlib.util
import itertools
from pathlib import Path

import gin
import pytest
import torch

from metaloss.registry import REGISTRIES, Registry

torch.set_num_threads(1)

NUMBERS = itertools.count()
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def clean():
    gin.clear_config(clear_constants=True)
    torch.manual_seed(0)
    yield
    gin.clear_config(clear_constants=True)


@pytest.fixture
def kind():
    """A registry of its own kind: gin's registry cannot be emptied, so a name serves one test."""
    name = f"throwaway{next(NUMBERS)}"
    yield Registry(name)
    del REGISTRIES[name]


def tool(name):
    """A file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tools_{name}", REPOSITORY / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(capsys):
    """Runs tools/train.py in this process: arguments -> exit code, standard error."""
    main = tool("train").main

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run
