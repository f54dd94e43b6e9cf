"""Plugins: a folder, an entry point, a file, a module; a broken one says why once it is missed."""

import copy
import json
import math
import re
import subprocess
import sys
from importlib.metadata import entry_points

import gin
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss import REPRESENTATIONS, links, testing
from metaloss import __main__ as command
from metaloss.config import plugins
from metaloss.config.configuration import load
from metaloss.config.registry import FAILED_PLUGINS
from metaloss.errors import ConfigError
from metaloss.problem import snapshot
from metaloss.representations.saved.learned_loss import load_loss
from tests.helpers import ROOT, tool
from tests.helpers import train as small_train

COMPONENT = """
from metaloss.representations.squared_error import SquaredError
from metaloss.config.registry import REGISTRIES

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


def example(name):
    """A module of `plugins/`."""
    return plugins.load_file(ROOT / "plugins" / f"{name}.py")


def test_every_example_is_tested_here():
    examples = {path.stem for path in (ROOT / "plugins").glob("*.py")}
    assert examples == {"temperature", "hill_climbing", "two_moons", "small_conv", "adabelief"}


def test_the_example_of_a_learned_loss_keeps_its_contract_and_its_formula():
    temperature = example("temperature").Temperature
    testing.check_representation(temperature)
    testing.check_representation(temperature, start=2.5)
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    loss = temperature(start=0.5).double()(*links.probabilities(logits, labels))
    expected = F.cross_entropy(logits / 0.5, labels, reduction="none")
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ConfigError, match="temperature.start = 0: give a number above 0"):
        temperature(start=0)


def test_the_example_of_a_meta_optimizer_keeps_its_contract():
    hill_climbing = example("hill_climbing").HillClimbing
    testing.check_meta_optimizer(lambda: hill_climbing(sigma=0.05))


def test_hill_climbing_takes_a_step_if_and_only_if_the_task_loss_falls():
    climber = example("hill_climbing").HillClimbing(sigma=0.3)
    torch.manual_seed(0)
    model, loss = nn.Linear(3, 2), REPRESENTATIONS["nn"](hidden=(4,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, loss, adaptation=climber)
    batch = torch.randn(8, 3), torch.randint(2, (8,))
    moved = []
    for _ in range(12):
        still = copy.deepcopy(learner.problem)  # the same step with φ as it was
        before = [p.clone() for p in loss.parameters()]
        found = learner.step(batch, batch)
        still.base_step(batch)
        moved.append(any(not p.equal(b) for p, b in zip(loss.parameters(), before, strict=True)))
        assert (found.task_loss < snapshot.task_loss(still, batch)) == moved[-1]
    assert 0 < sum(moved) < 12


def test_the_example_of_a_task_keeps_its_contract(tmp_path):
    testing.check_task(example("two_moons").TwoMoons(), tmp_path)


def test_the_example_of_a_backbone_keeps_its_contract():
    testing.check_backbone(example("small_conv").small_conv, (1, 8, 8), 10, channels=3)
    with pytest.raises(ConfigError, match="small_conv"):
        example("small_conv").small_conv((64,), 10)


def test_the_example_of_a_base_optimizer_keeps_its_contract():
    testing.check_base_optimizer(example("adabelief").adabelief, lr=0.1, eps=1e-3)


def test_the_examples_train_together_through_gin(train, tmp_path):
    code, stderr = train(
        "--gin_file=tasks/digits_mlp.gin",
        "--gin_file=methods/adalfl_letter.gin",
        "--gin_param=Runner.task = @tasks.two_moons()",
        "--gin_param=Runner.base_optimizer = @base_optimizers.adabelief",
        "--gin_param=Runner.representation = @representations.temperature()",
        "--gin_param=representations.temperature.start = 2.0",
        "--gin_param=Runner.initialization = None",
        "--gin_param=Runner.adaptation = @meta_optimizers.hill_climbing()",
        "--gin_param=meta_optimizers.hill_climbing.sigma = 0.5",
        "--gin_param=Runner.steps = 16",
        "--gin_param=Runner.log_every = 1",
        "--gin_param=backbones.mlp.hidden = (4,)",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert code == 0, stderr
    loss = load_loss(tmp_path / "run").representation
    assert loss.arguments() == {"start": 2.0}
    assert loss.log_t.item() != pytest.approx(math.log(2))
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in rows if "learned_loss" in row]
    assert len(rows) == 16 and all("task_loss" in row for row in rows)
    assert "gradient_norm" not in rows[-1]  # there is none


@pytest.mark.full  # every check, in a process of its own
def test_the_page_on_plugins_runs_and_names_every_check(tmp_path):
    page = (ROOT / "docs" / "plugins.md").read_text()
    for name in testing.__all__:
        assert f"`{name}" in page or f".{name}`" in page, name
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (expected,) = re.findall(r"print\(error\)  # (.*)", page)
    assert done.stdout == f"{expected}\n"


def test_the_list_shows_a_plugin(write, kind, capsys):
    path = write("listed.py", "listed")
    assert tool("list").main([f"--plugin={path}", kind.kind]) == 0
    assert capsys.readouterr().out == f"@{kind.kind}.listed()\n    A thing.\n"


def test_the_list_turns_an_unknown_pattern_into_one_line(capsys):
    assert tool("list").main(["backbone.*"]) == 2
    assert capsys.readouterr().err.startswith("error: no component matches 'backbone.*'")


ASYMMETRIC = '''
"""A loss whose two sides weigh differently."""
import torch
from torch import nn
from metaloss.representations.base import REPRESENTATIONS, Representation

@REPRESENTATIONS.register("lopsided")
class Lopsided(Representation):
    """(f - y)² with a weight for each sign."""
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    def forward(self, prediction, target):
        difference = prediction - target
        return (torch.where(difference > 0, *self.weights) * difference.square()).mean(-1)
'''


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """The folder of a run with a loss of a plugin's, given as a relative path, that was stopped."""
    folder = tmp_path_factory.mktemp("lopsided")
    (folder / "lopsided.py").write_text(ASYMMETRIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loss = "Runner.representation = @representations.lopsided()"
        assert small_train(folder / "run", "ml3", [loss], plugin=["lopsided.py"]) == 0
    return folder


@pytest.fixture
def forgotten(lopsided):
    """As in a new process, which knows nothing of the plugin."""
    sys.modules.pop("metaloss_plugins.lopsided", None)
    REPRESENTATIONS._components.pop("lopsided", None)
    if "representations.lopsided" in gin.config._REGISTRY:
        gin.config._REGISTRY.pop("representations.lopsided")
    return lopsided / "run"


def test_a_run_remembers_its_plugins_by_their_whole_paths(lopsided):
    meta = json.loads((lopsided / "run" / "meta.json").read_text())
    assert meta["plugins"] == [str(lopsided / "lopsided.py")]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN", "--device=cpu", "--threads=1"],
        ["train", "--resume", "--output_dir=RUN"],
        ["compare", "RUN", "RUN"],
        pytest.param(["report", "RUN"], marks=pytest.mark.full),  # it draws
        ["distill", "RUN", "--largest=1"],
    ],
    ids=" ".join,
)
def test_what_is_done_with_a_run_needs_no_plugin_again(forgotten, words, capsys):
    assert command.main([word.replace("RUN", str(forgotten)) for word in words]) == 0
    assert "warning" not in capsys.readouterr().err
    assert "lopsided" in REPRESENTATIONS


def test_a_plugin_that_is_gone_is_named_and_another_of_its_name_takes_its_place(
    forgotten, tmp_path, capsys
):
    there = forgotten.parent / "lopsided.py"
    moved = there.rename(tmp_path / "lopsided.py")
    try:
        assert command.main(["evaluate", str(forgotten)]) == 2
        missing = f"plugin '{there} (of the run)' did not load: FileNotFoundError"
        assert missing in capsys.readouterr().err.splitlines()[-1]
        assert command.main(["evaluate", str(forgotten), f"--plugin={moved}"]) == 0
    finally:
        moved.rename(there)
