"""Plugins: a folder, an entry point, a file, a module; a broken one says why once it is missed."""

import sys
from importlib.metadata import entry_points

import pytest
import torch

from metaloss import REPRESENTATIONS, plugins
from metaloss.config import load
from metaloss.errors import ConfigError
from metaloss.registry import FAILED_PLUGINS
from tests.conftest import REPOSITORY, tool

COMPONENT = """
from metaloss.representations.squared_error import SquaredError
from metaloss.registry import REGISTRIES

@REGISTRIES[{kind!r}].register({name!r})
class Thing(SquaredError):
    '''A thing.'''
"""


@pytest.fixture(autouse=True)
def forget():
    """Puts back what was loaded, and what failed."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.startswith("metaloss_plugins."):
            del sys.modules[name]
    FAILED_PLUGINS.clear()


@pytest.fixture
def write(tmp_path, kind):
    """Writes a plugin that registers a component of a throw-away kind."""

    def write(file, name, folder=tmp_path):
        folder.mkdir(exist_ok=True)
        path = folder / file
        path.write_text(COMPONENT.format(kind=kind.kind, name=name))
        return path

    return write


def test_every_file_of_the_folder_is_loaded(write, tmp_path, kind):
    write("one.py", "first")
    write("two.py", "second")
    plugins.load_all([], tmp_path)
    assert list(kind) == ["first", "second"]
    assert kind["first"].__module__ == "metaloss_plugins.one"


def test_a_file_is_loaded_once(write, kind, tmp_path):
    path = write("once.py", "thing")
    assert plugins.load_file(path) is plugins.load_file(path)
    plugins.load_all([str(path)], tmp_path)
    assert list(kind) == ["thing"]


def test_a_plugin_is_asked_for_by_file_or_by_module(write, kind, tmp_path, monkeypatch):
    folder = tmp_path / "asked"
    path = write("by_file.py", "by_file", folder)
    write("module_of_a_plugin_test.py", "by_module", folder)
    monkeypatch.syspath_prepend(folder)
    plugins.load_all([str(path), "module_of_a_plugin_test"], tmp_path)
    assert list(kind) == ["by_file", "by_module"]


def test_an_installed_package_is_found_by_its_entry_point(write, kind, tmp_path, monkeypatch):
    site = tmp_path / "site"
    write("installed_plugin_of_a_test.py", "installed", site)
    information = site / "a_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[metaloss.plugins]\nlosses = installed_plugin_of_a_test\nbroken = no_such_module_at_all\n"
    )
    monkeypatch.syspath_prepend(site)
    assert {"losses", "broken"} <= {point.name for point in entry_points(group=plugins.GROUP)}
    plugins.load_all([], tmp_path / "no folder")
    assert list(kind) == ["installed"]
    assert FAILED_PLUGINS == {
        "broken (no_such_module_at_all)": (
            "ModuleNotFoundError: No module named 'no_such_module_at_all'"
        )
    }


def test_a_broken_plugin_warns_and_explains_the_name_that_is_missing(tmp_path, capsys):
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('no luck\\ntoday')")
    plugins.load_all([], tmp_path)
    reason = f"plugin {path} did not load: RuntimeError: no luck"
    assert capsys.readouterr().err == f"warning: {reason}\n"
    with pytest.raises(ConfigError) as caught:
        load(["quickstart.gin"], ["Runner.representation = @representations.promised()"])
    assert f"· plugin '{path}' did not load: RuntimeError: no luck · in --gin_param" in str(
        caught.value
    )
    path.unlink()
    plugins.load_all([], tmp_path)
    assert FAILED_PLUGINS == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax (broken_asked.py, line 1)"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_plugin_that_was_asked_for_must_load(tmp_path, content, reason):
    path = tmp_path / "broken_asked.py"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        plugins.load_all([str(path)], tmp_path / "none")
    assert str(caught.value) == f"--plugin {str(path)!r} did not load: {reason}"
    assert "metaloss_plugins.broken_asked" not in sys.modules


def test_two_files_of_one_name_do_not_replace_each_other(write, kind, tmp_path):
    first = write("same.py", "first", tmp_path / "a")
    second = write("same.py", "second", tmp_path / "b")
    plugins.load_file(first)
    with pytest.raises(ImportError, match=f"a plugin of the same name was loaded from {first}"):
        plugins.load_file(second)
    assert list(kind) == ["first"]


def test_the_worked_example_is_a_focal_loss():
    plugins.load_file(REPOSITORY / "plugins" / "focal.py")
    prediction = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    target = torch.eye(3, dtype=torch.float64)[[0, 2]]
    p = torch.tensor([0.7, 0.4], dtype=torch.float64)
    focal = REPRESENTATIONS["focal"](gamma=2.0, scale=3.0).double()
    torch.testing.assert_close(focal(prediction, target), -3 * (1 - p) ** 2 * p.log())
    assert focal.arguments() == {"gamma": 2.0, "scale": 3.0}
    assert torch.autograd.gradgradcheck(
        lambda f, phi: torch.func.functional_call(focal, {"phi": phi}, (f, target)),
        (prediction.requires_grad_(), focal.phi.detach().requires_grad_()),
    )
    certain = torch.eye(3, requires_grad=True)  # probabilities of 0 and 1
    loss = (
        focal.float()(certain, torch.eye(3).roll(1, 0)).sum() + focal(certain, torch.eye(3)).sum()
    )
    (slope,) = torch.autograd.grad(loss, certain, create_graph=True)
    assert torch.isfinite(slope).all()
    assert torch.isfinite(torch.autograd.grad(slope.sum(), focal.phi)[0]).all()


def test_the_worked_example_trains_through_gin(train, tmp_path):
    code, _ = train(
        "--gin_file=tasks/digits_mlp.gin",
        "--gin_file=methods/adalfl.gin",
        "--gin_param=Runner.representation = @representations.focal()",
        "--gin_param=representations.focal.gamma = 1.0",
        "--gin_param=Runner.steps = 2",
        "--gin_param=meta_optimizers.offline_unrolled.steps = 2",
        "--gin_param=backbones.mlp.hidden = (4,)",
        f"--output_dir={tmp_path / 'run'}",
        "--strict",
    )
    assert code == 0
    from metaloss.export import load_loss

    loss = load_loss(tmp_path / "run")
    assert loss.representation.gamma == 1.0
    assert not torch.equal(loss.representation.phi.detach(), torch.tensor([1.0, 1.0]))


def test_the_list_shows_a_plugin(write, kind, capsys):
    path = write("listed.py", "listed")
    assert tool("list").main([f"--plugin={path}", kind.kind]) == 0
    assert capsys.readouterr().out == f"@{kind.kind}.listed()\n    A thing.\n"


def test_the_list_turns_an_unknown_pattern_into_one_line(capsys):
    assert tool("list").main(["backbone.*"]) == 2
    assert capsys.readouterr().err.startswith("error: no component matches 'backbone.*'")
