"""A third party's package: built, installed beside metaloss's wheel, trained with by gin."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "examples" / "plugin_package"
NOT_SOURCE = shutil.ignore_patterns("*.egg-info", "build", "dist", "__pycache__", ".*")
OF_A_USER = ("runs", "data")  # at the top alone: a room is called runs too


def run(*command, folder):
    """A command that must succeed, outside of the repository and without its paths; -> stdout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment that holds the two wheels and sees metaloss's dependencies; -> its bin.

    A .pth file lends it the packages of the environment that runs the tests, in which an editable
    metaloss has no effect: the hook that finds it is a .pth file too.
    """
    folder = tmp_path_factory.mktemp("installed")
    for name, source in (("metaloss", ROOT), ("plugin", PACKAGE)):
        copy = folder / name  # a build leaves its files in the source
        copy.mkdir()
        for path in source.iterdir():
            if path.name in {*OF_A_USER, *NOT_SOURCE(source, [path.name])}:
                continue
            if path.is_dir():
                shutil.copytree(path, copy / path.name, ignore=NOT_SOURCE)
            else:
                shutil.copy(path, copy)
        run(
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--wheel-dir", folder / "wheels", copy, folder=folder,
        )  # fmt: skip
        shutil.rmtree(copy)
    environment = folder / "environment"
    venv.create(environment, symlinks=os.name != "nt")
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["metaloss", "metaloss_tangent"]
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--ignore-installed", *wheels, folder=folder,
    )  # fmt: skip
    return python.parent


@pytest.mark.full  # wheels are built and installed: half a minute
def test_the_wheels_alone_are_imported(installed, tmp_path):
    code = "import metaloss, metaloss_tangent as p; print(metaloss.__file__); print(p.__file__)"
    for path in run(installed / "python", "-c", code, folder=tmp_path).splitlines():
        assert Path(path).is_relative_to(installed.parent)


@pytest.mark.full
def test_the_package_passes_its_own_tests(installed, tmp_path):
    shutil.copytree(PACKAGE / "tests", tmp_path / "tests")
    out = run(
        installed / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests",
        folder=tmp_path,
    )  # fmt: skip
    assert "4 passed" in out


@pytest.mark.full
def test_an_installed_plugin_is_listed_trained_and_loaded(installed, tmp_path):
    listed = run(installed / "metaloss", "list", "representations.t*", folder=tmp_path)
    assert "@representations.tangent()" in listed
    shutil.copy(PACKAGE / "src" / "metaloss_tangent" / "tangent.gin", tmp_path)
    out = run(
        installed / "metaloss",
        "train",
        "--gin_file=tasks/digits_mlp.gin",
        "--gin_file=methods/adalfl.gin",
        "--gin_file=tangent.gin",
        "--gin_param=Runner.steps = 3",
        "--gin_param=Runner.figures = 1",
        "--gin_param=meta_optimizers.task_fit.steps = 2",
        "--gin_param=meta_optimizers.offline_unrolled.steps = 1",
        "--gin_param=meta_optimizers.offline_unrolled.scale_steps = 2",
        "--gin_param=backbones.mlp.hidden = (4,)",
        "--output_dir=run",
        "--strict",
        folder=tmp_path,
    )
    assert "finished, digits + mlp, tangent" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("finished", 3)
    config = json.loads((tmp_path / "run" / "loss" / "config.json").read_text())
    assert (config["representation"], config["arguments"]) == ("tangent", {"scale": 0.55})
    code = (
        "import torch, metaloss; from metaloss.config import plugins; plugins.load_all([]);"
        "loss = metaloss.load_loss('run'); print(loss.representation.log_scale.item())"
    )
    learned = float(run(installed / "python", "-c", code, folder=tmp_path))
    assert abs(learned - -0.5978370007556204) > 1e-6  # log 0.55, where it started


@pytest.mark.full
def test_an_installed_plugin_is_swept(installed, tmp_path):
    """The sweep's runs are processes of the installed metaloss too."""
    shutil.copy(PACKAGE / "src" / "metaloss_tangent" / "tangent.gin", tmp_path)
    (tmp_path / "sweep.gin").write_text(
        "Sweep.tasks = ['tasks/digits_mlp.gin']\n"
        "Sweep.methods = [['methods/adalfl.gin', 'tangent.gin']]\n"
        "Sweep.seeds = 1\n"
        "Sweep.bindings = ['Runner.steps = 2', 'meta_optimizers.task_fit.steps = 1', "
        "'meta_optimizers.offline_unrolled.steps = 1', "
        "'meta_optimizers.offline_unrolled.scale_steps = 2']\n"
    )
    out = run(installed / "metaloss", "sweep", "run", "sweep.gin", folder=tmp_path)
    assert "finished    digits_mlp/tangent-" in out


def test_the_commands_are_there_in_an_editable_install_too():
    """As README installs it: setuptools finds a folder beside the package by its __init__.py."""
    spec = importlib.util.find_spec("metaloss.tools")
    assert spec is not None
    for point in entry_points(group="console_scripts"):
        if point.value.startswith("metaloss."):
            assert callable(point.load()), point.name
