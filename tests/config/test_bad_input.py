"""Bad input: one line on standard error, exit code 2, and nothing on disk is touched."""

import ast
import inspect
import os
import subprocess
import sys

import pytest
import torch

from metaloss import TASKS
from metaloss.config import plugins
from metaloss.config.configuration import load
from metaloss.config.gin_files import CONFIG_DIR, SYNTAX
from metaloss.config.registry import REGISTRIES
from metaloss.errors import ConfigError, InputError
from metaloss.representations.base import Representation
from metaloss.runs.runner import Runner
from tests.helpers import ROOT

plugins.load_all([])  # as every run does: theirs are among the known names

TASK, METHOD = "tasks/digits_mlp.gin", "methods/adalfl_letter.gin"
KINDS = (
    "kinds: backbones, base_optimizers, callbacks, descents, engines, groupings, launchers, "
    "meta_optimizers, rates, representations, schedules, tasks"
)
INTEGERS = "give a list, each item an integer of at least 1"
A_LOSS = "give one of representations, such as @representations.class_set() or None"
SIZES = "the run calls it with input_shape, outputs"


BINDINGS = {
    "Runner.representation = @tasks.mnits()": (
        f"no 'mnits' in tasks; did you mean 'mnist'? · known: {', '.join(TASKS)}"
    ),
    "representations.nn.hiden = 3": (
        "representations.nn has no parameter 'hiden'; did you mean 'hidden'?; it takes: hidden, "
        "activation, output, gamma, beta"
    ),
    "Runner.representation = @representation.nn()": (
        f"no component 'representation.nn'; near: representations.nn · {KINDS}"
    ),
    "representation.nn.hidden = (3,)": (
        f"no component 'representation.nn'; near: representations.nn · {KINDS}"
    ),
    "Runner.stesp = 3": (
        "Runner has no parameter 'stesp'; did you mean 'steps'?; it takes: "
        + ", ".join(inspect.signature(Runner).parameters)
    ),
    "Runner.method = adalfl": SYNTAX,
    "Runner.steps == 3": SYNTAX,
    "Runner.steps = ": SYNTAX,
    "Runner.steps": SYNTAX,
    "Runner.method = 'abc": SYNTAX,
    "representations.nn.hidden = [3,": SYNTAX,
    "Runner.steps = 1/10": SYNTAX,
    "Runner.steps = %STEPS": "%STEPS is used but never set; add 'STEPS = ...'",
    "Runner.steps = %gin.REQUIRED": "Runner.steps must be set: it is %gin.REQUIRED",
    "base_optimizers.sgd.lr = %gin.REQUIRED": (
        "base_optimizers.sgd.lr must be set: it is %gin.REQUIRED"
    ),
    "Runner.steps = %S\nS = %S": "%S refers to itself",
    "Runner.steps = 'many'": "Runner.steps = 'many': give an integer of at least 0 or None",
    "Runner.steps = True": "Runner.steps = True: give an integer of at least 0 or None",
    "Runner.steps = -1": "Runner.steps = -1: give an integer of at least 0 or None",
    "Runner.log_every = 0": "Runner.log_every = 0: give an integer of at least 1",
    "Runner.method = 3": "Runner.method = 3: give a string in quotes",
    "Runner.method = '../x'": "Runner.method = '../x': give a word; it names a folder",
    "representations.nn.hidden = 'x'": f"representations.nn.hidden = 'x': {INTEGERS}",
    "representations.nn.hidden = (0,)": (f"representations.nn.hidden = (0,): {INTEGERS}"),
    "backbones.mlp.hidden = 3": f"backbones.mlp.hidden = 3: {INTEGERS}",
    "representations.nn.activation = 'rleu'": (
        "representations.nn.activation = 'rleu': give one of 'smooth_leaky_relu', 'relu', 'tanh', "
        "'softplus'; did you mean 'relu'?"
    ),
    "representations.nn.gamma = 'a'": "representations.nn.gamma = 'a': give a number",
    "meta_optimizers.online_one_step.meta_lr = 'a'": (
        "meta_optimizers.online_one_step.meta_lr = 'a': give a number above 0"
    ),
    "base_optimizers.sgd.lr = 'a'": "base_optimizers.sgd.lr = 'a': give a number above 0",
    "base_optimizers.sgd.lr = None": "base_optimizers.sgd.lr = None: give a number above 0",
    "base_optimizers.sgd.lr = -1": "base_optimizers.sgd.lr = -1: give a number above 0",
    "base_optimizers.sgd.lr = 1e999": "base_optimizers.sgd.lr = inf: give a number above 0",
    "base_optimizers.sgd.momentum = 'x'": (
        "base_optimizers.sgd.momentum = 'x': give a number of at least 0"
    ),
    "base_optimizers.sgd.nesterov = 'yes'": (
        "base_optimizers.sgd.nesterov = 'yes': give True or False"
    ),
    "base_optimizers.sgd.nesterov = True": (
        "base_optimizers.sgd.nesterov = True: give a momentum with it, and no dampening"
    ),
    "Runner.task = @tasks.mnist": "@tasks.mnist: write @tasks.mnist(), to make it",
    "Runner.backbone = @backbones.mlp()": (f"@backbones.mlp(): write @backbones.mlp, {SIZES}"),
    "Runner.base_optimizer = @base_optimizers.sgd()": (
        "@base_optimizers.sgd(): write @base_optimizers.sgd, the run calls it with parameters"
    ),
    "Runner.representation = @tasks.digits()": (
        f"Runner.representation = @tasks.digits(): {A_LOSS}"
    ),
    "Runner.representation = 'nn'": f"Runner.representation = 'nn': {A_LOSS}",
    "Runner.backbone = @base_optimizers.sgd": (
        "Runner.backbone = @base_optimizers.sgd: give one of backbones, such as @backbones.allcnn"
    ),
    "backbones.mlp.outputs = 3": "backbones.mlp.outputs is given by the run",
    "Runner.backbone = @backbones.lenet5": (
        "backbones.lenet5 takes images [channels, height, width] of at least 16x16; this task's "
        "inputs have shape [1, 8, 8]"
    ),
    "Runner.task = @Runner()": "@Runner() refers to itself",
    "import no_such_module": (
        "import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"
    ),
    "include 'tasks/mnist_mpl.gin'": (
        "no gin file 'tasks/mnist_mpl.gin'; did you mean 'tasks/mnist_mlp.gin'?"
    ),
}


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_wrong_binding_is_explained_with_its_place(refused, binding):
    message = refused(f"--gin_param={binding}")
    assert message == f"{BINDINGS[binding]} · in --gin_param {binding!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Runner.steps = 'a'", "Runner.steps = 'a': give an integer of at least 0 or None"),
        ("Runner.method = foo", SYNTAX),
        ("backbones.mlp:\n  hidden = 3", "backbones.mlp.hidden = 3: " + INTEGERS),
        ("include 'nowhere.gin'", None),
        ("Runner.representation = @representations.taylor()\n\n", None),
    ],
)
def test_a_wrong_line_of_a_file_is_named(refused, tmp_path, text, message):
    path = tmp_path / "mine.gin"
    path.write_text(f"# a comment\n\n{text}\nrepresentations.taylor.order = 1\n")
    line = 4 if text.startswith("backbones") else 3
    error = refused(files=(TASK, METHOD, path))
    if text.startswith("include"):
        listed = "`metaloss copy` lists those that ship"
        assert error == f"no gin file 'nowhere.gin' · {listed} · in {path}:3"
    elif message is None:
        message = "representations.taylor.order = 1: give an integer of at least 2"
        assert error == f"{message} · in {path}:6"
    else:
        assert error == f"{message} · in {path}:{line}"


def test_an_error_in_an_included_file_names_that_file(refused, tmp_path):
    (tmp_path / "outer.gin").write_text("include 'inner.gin'\n")
    inner = tmp_path / "inner.gin"
    inner.write_text("\nRunner.steps = x\n")
    assert refused(files=(TASK, METHOD, tmp_path / "outer.gin")) == f"{SYNTAX} · in {inner}:2"
    inner.write_text("include 'outer.gin'\n")
    assert refused(files=(tmp_path / "outer.gin",)) == (f"{tmp_path / 'outer.gin'} includes itself")
    inner.write_text("Runner.log_every = 0\n")
    assert refused(files=(TASK, inner, inner)).startswith(
        "Runner.log_every = 0: "
    )  # twice is no loop
    inner.write_bytes(b"\xff")
    assert refused(files=(inner,)).startswith(f"{inner} cannot be read: 'utf-8' codec can't decode")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tasks/mnist_lenet.gin"], "no gin file 'tasks/mnist_lenet.gin'; did you mean "
         "'tasks/mnist_lenet5.gin'?"),
        ([METHOD], "Runner.task is not set: add it to a gin file, or --gin_param "
         "'Runner.task = ...'"),
        ([], "Runner.task is not set: add it to a gin file, or --gin_param 'Runner.task = ...'"),
    ],
)  # fmt: skip
def test_a_missing_file_or_task_is_explained(refused, files, message):
    assert refused(files=files) == message


def test_a_missing_learning_rate_is_named(refused):
    run = (
        "--gin_param=Runner.task = @tasks.digits()\nRunner.backbone = @backbones.mlp\n"
        "Runner.base_optimizer = @base_optimizers.sgd\nRunner.steps = 1"
    )
    assert refused(run, files=["methods/baseline.gin"]) == (
        "base_optimizers.sgd.lr is not set: add it to a gin file, or --gin_param "
        "'base_optimizers.sgd.lr = ...'"
    )


@pytest.mark.filterwarnings("ignore")  # timm's own
def test_an_unknown_timm_model_suggests_the_nearest(refused):
    name = "--gin_param=backbones.timm.name = 'resnet81'"
    message = refused("--gin_param=Runner.backbone = @backbones.timm", name)
    assert ": give a model of timm " in message
    assert "; did you mean 'resnet18'? · in --gin_param" in message


def test_a_loss_without_parameters_cannot_be_learned(refused):
    binding = "Runner.representation = @representations.cross_entropy()"
    assert refused(f"--gin_param={binding}") == (
        "there is nothing to learn: the loss has no parameter that requires a gradient"
    )


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--device=gpu", "--device 'gpu': give auto, cpu, cuda, or cuda:1 for the second GPU"),
        ("--device=", "--device '': give auto, cpu, cuda, or cuda:1 for the second GPU"),
        ("--threads=0", "--threads 0: at least 1"),
        ("--plugin=no_such.py", None),
        ("--plugin=no_such", "--plugin 'no_such' did not load: ModuleNotFoundError: No module "
         "named 'no_such'"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_explained(refused, argument, message):
    error = refused(argument)
    if message is None:
        assert error.startswith("--plugin 'no_such.py' did not load: FileNotFoundError: no plugin")
    else:
        assert error == message


def test_an_unread_binding_warns_and_is_an_error_where_asked_for(refused, train, tmp_path):
    binding = "typo/Runner.steps = 3"
    message = f"nobody reads: typo/Runner.steps in --gin_param {binding!r}"
    assert refused(f"--gin_param={binding}", "--strict") == message
    small = (
        "Runner.steps = 1",
        "meta_optimizers.offline_unrolled.steps = 1",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
    )
    code, stderr = train(
        f"--gin_file={TASK}", f"--gin_file={METHOD}", f"--gin_param={binding}", "--dry_run",
        *(f"--gin_param={line}" for line in small),
    )  # fmt: skip
    assert code == 0
    assert stderr == f"warning: {message}\n"


def test_a_shipped_method_that_another_one_replaces_is_no_slip(train):
    """As `metaloss init` advises: its file has AdaLFL, and the baseline comes after."""
    files = (f"--gin_file={TASK}", f"--gin_file={METHOD}", "--gin_file=methods/baseline.gin")
    code, stderr = train(*files, "--gin_param=Runner.steps = 1", "--dry_run", "--strict")
    assert (code, stderr) == (0, "")


def tools(name, *arguments, **options):
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=environment, **options
    )


def test_the_exit_code_of_bad_input_is_2_without_a_traceback(tmp_path):
    result = tools("train", "--gin_file=tasks/nope.gin", f"--output_dir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: no gin file 'tasks/nope.gin'")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_importing_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    for name in ("train", "list"):
        script = ROOT / "tools" / f"{name}.py"
        result = subprocess.run(
            [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=100,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        assert "--plugin" in result.stdout


def test_the_shipped_files_are_those_of_this_checkout():
    assert CONFIG_DIR == ROOT / "gin_configs"


def test_a_path_of_a_command_line_is_of_home_where_it_says_so(train, tmp_path, monkeypatch):
    """bash leaves ~ alone behind an =, and so do launchers."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine.gin").write_text(f"include '{TASK}'\ninclude 'methods/baseline.gin'\n")
    (home / "a_plugin.py").write_text("print('loaded')")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    code, _ = train(
        "--gin_file=~/mine.gin", "--plugin=~/a_plugin.py", "--data_dir=~/data",
        "--output_dir=~/runs/x", "--gin_param=Runner.steps = 1",
    )  # fmt: skip
    assert code == 0
    assert (home / "runs" / "x" / "result.json").is_file()
    assert list(tmp_path.iterdir()) == [home]


@pytest.mark.parametrize("flag", ["--output_dir", "--data_dir", "--gin_file"])
def test_an_empty_path_is_refused(refused, flag):
    """As an unset variable of a shell leaves it."""
    assert refused(f"{flag}=") == f"{flag} is empty: give a path, or leave it out"


def test_the_home_of_nobody_is_refused(refused):
    assert refused("--output_dir=~nobody_of_this_name/x").startswith(
        "--output_dir '~nobody_of_this_name/x': Could not determine home directory"
    )


def test_a_gin_file_may_begin_with_a_byte_order_mark(tmp_path):
    """As editors on Windows write it."""
    path = tmp_path / "windows.gin"
    text = f"include '{TASK}'\ninclude 'methods/baseline.gin'\n"
    path.write_bytes(text.encode("utf-8-sig"))
    assert load([path]).text == load([TASK, "methods/baseline.gin"]).text


@pytest.mark.parametrize("error", [TypeError, ValueError, RuntimeError])
def test_a_bug_in_a_constructor_is_no_bad_input(kind, error):
    """It is not explained away by words of its message that are names of parameters."""

    @kind.register("broken")
    class Broken(Representation):
        def __init__(self, steps: int = 1) -> None:
            raise error("steps went wrong")

        forward = None

    parsed = load(
        [TASK, METHOD],
        [f"Runner.representation = @{kind.kind}.broken()", f"{kind.kind}.broken.steps = 2"],
    )
    with pytest.raises(error, match="^steps went wrong$") as caught:
        parsed.build()
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("base_optimizers.adam.betas = (0.9, 1.5)",
         "base_optimizers.adam.betas = (0.9, 1.5): give a list of 2: a number of at least 0 and "
         "below 1, a number of at least 0 and below 1"),
        ("base_optimizers.adam.eps = -1.0",
         "base_optimizers.adam.eps = -1.0: give a number of at least 0"),
        ("base_optimizers.rprop.etas = (0.5, 0.9)",
         "base_optimizers.rprop.etas = (0.5, 0.9): give a list of 2: a number above 0 and below 1, "
         "a number above 1"),
        ("backbones.allcnn.dropout = 2",
         "backbones.allcnn.dropout = 2: give a number of at least 0 and at most 1"),
        ("tasks.digits.valid_fraction = 1.0",
         "tasks.digits.valid_fraction = 1.0: give a number above 0 and below 1"),
        ("representations.residual.settings = {'hiden': 3}",
         "representations.nn has no parameter 'hiden'; did you mean 'hidden'?; it takes: hidden, "
         "activation, output, gamma, beta"),
        ("descents.adam.schedule = 'linear'",
         "descents.adam.schedule_steps = None: give the step at which it is 0, as schedule = "
         "'linear'"),
    ],
)  # fmt: skip
def test_python_and_gin_refuse_an_argument_by_the_same_words(binding, message):
    name, value = binding.split(" = ")
    registry, component, argument = name.split(".")
    supplied = {
        "base_optimizers": ([torch.ones(1, requires_grad=True)],),
        "backbones": ((3, 32, 32), 10),
        "descents": ([],),
    }
    with pytest.raises(ConfigError) as caught:
        REGISTRIES[registry][component](
            *supplied.get(registry, ()), **{argument: ast.literal_eval(value)}
        )
    assert str(caught.value) == message
