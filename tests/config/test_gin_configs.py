"""Every shipped gin file builds, leaves nothing unread, and runs two steps, on tiny data."""

import itertools
import json
import re

import gin
import pytest
import torch
import torch.nn.functional as F

from metaloss.config.configuration import load
from metaloss.config.gin_files import CONFIG_DIR, Macro, Reference, bindings_of, look_up
from metaloss.experiments.sweeps import cells, search
from metaloss.meta_optimizers.descents.base import Group
from metaloss.runs.precision import process_left_as_it_was
from metaloss.runs.state import State
from tests.helpers import FORMAT_1, thinned

TASKS = sorted(path.name for path in (CONFIG_DIR / "tasks").glob("*.gin"))
METHODS = sorted(path.name for path in (CONFIG_DIR / "methods").glob("*.gin"))
ABLATIONS = sorted(path.name for path in (CONFIG_DIR / "ablations").glob("*.gin"))
FILES = sorted(path.relative_to(CONFIG_DIR).as_posix() for path in CONFIG_DIR.rglob("*.gin"))
TRANSFER = sorted(path.name for path in (CONFIG_DIR / "transfer").glob("*.gin"))
LOSSES = sorted(path.name for path in (CONFIG_DIR / "losses").glob("*.gin"))
OWN_DATA = sorted(path.name for path in (CONFIG_DIR / "own_data").glob("*.gin"))
SMALL = ("california", "crime", "diabetes", "digits", "mnist", "table")
PHOTOGRAPHS = ("cifar10", "cifar100", "svhn", "arrays", "image_folder")
BASELINES = sorted(path.name for path in (CONFIG_DIR / "baselines").glob("*.gin"))
TRAINING = sorted(path.name for path in (CONFIG_DIR / "training").glob("*.gin"))
SWEEPS = ("paper/", "protocol/")
NO_RUNS = ("methods/", "search/", *SWEEPS)
TINY = {
    "Runner.steps": 2,
    "Runner.figures": 1,
    "backbones.mlp.hidden": (4,),
    "meta_optimizers.task_fit.steps": 1,
    "meta_optimizers.offline_unrolled.steps": 1,
    "meta_optimizers.offline_unrolled.scale_steps": 1,
    "offline/meta_optimizers.meta_lr.steps": 2,
    **{f"tasks.{name}.batch_size": 8 for name in SMALL},
    **{f"tasks.{name}.batch_size": 2 for name in PHOTOGRAPHS},
}
#: Ten inner steps, which momentum asks for, would be a minute of the widest net.
FEW = {"meta_optimizers.offline_unrolled.inner_steps": 2}
NARROW = {"backbones.wide_resnet.depth": 10, "backbones.wide_resnet.width": 1}


@pytest.fixture
def start(train, tmp_path, few_examples):
    """Runs gin files with those of the tiny overrides that they read; further flags follow."""

    def start(files, *flags, overrides=TINY):
        parsed = load(files)
        assert parsed.unread == ()
        read = {line.split(" = ")[0] for line in parsed.text.splitlines()}
        if any(f"tasks.{name}.batch_size" in read for name in PHOTOGRAPHS):
            overrides = {**overrides, **FEW}
        bindings = [f"--gin_param={k} = {v}" for k, v in overrides.items() if k in read]
        assert len(bindings) >= 2
        code, stderr = train(
            *(f"--gin_file={file}" for file in files), *bindings, "--strict",
            f"--data_dir={few_examples}", f"--output_dir={tmp_path / 'run'}", *flags,
        )  # fmt: skip
        assert code == 0, stderr

    return start


@pytest.fixture
def run(start, tmp_path):
    """Carries a run of gin files out; -> the result."""

    def run(files):
        start(files, overrides={**TINY, **NARROW})
        return json.loads((tmp_path / "run" / "result.json").read_text())

    return run


@pytest.mark.parametrize("task", TASKS)
def test_every_task_loads_with_every_method(task):
    for method in METHODS:
        assert load([f"tasks/{task}", f"methods/{method}"]).unread == ()


#: Of the fit and of what comes after it 1 each; where there is no such phase, another number.
INIT_STEPS = {
    "baseline.gin": 0, "ml3_letter.gin": 1, "ml3_relu.gin": 1, "adalfl_letter.gin": 1,
    "meta_lr.gin": 1,
}  # fmt: skip


#: Tasks whose networks are large even here.
LARGE = {f"cifar10_{name}.gin" for name in ("allcnn", "resnet18", "squeezenet", "vgg16")}


def by_default(task, method):
    """A method's file names no task: one of classification and one of regression stand for all."""
    if task in ("digits_mlp.gin", "california_mlp.gin"):
        return True
    return method == "adalfl.gin" and task not in LARGE and "wide_resnet" not in task


@pytest.mark.parametrize(
    ("task", "method"), thinned(itertools.product(TASKS, METHODS), keep=by_default)
)
def test_every_task_runs_with_every_method(run, task, method):
    result = run([f"tasks/{task}", f"methods/{method}"])
    assert result["status"] == "finished"
    assert f"{result['task']}_{result['backbone']}.gin" == task
    assert f"{result['method']}.gin" == method
    assert (result["steps"], result["init_steps"]) == (2, INIT_STEPS.get(method, 2))
    assert 0 <= result["test"] < 1000


@pytest.mark.full
@pytest.mark.parametrize(
    ("task", "depth", "width"), [("cifar100_wide_resnet", 28, 10), ("svhn_wide_resnet", 16, 8)]
)
def test_wide_resnets_of_full_size(start, task, depth, width):
    """One step of each phase. Those that run above are narrow."""
    files = [f"tasks/{task}.gin", "methods/adalfl.gin"]
    text = load(files).text
    assert f"wide_resnet.depth = {depth}\n" in text
    assert f"wide_resnet.width = {width}\n" in text
    start(files, "--dry_run")


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_runs(run, ablation):
    """As its header says, on a small task."""
    _, method, *rest = files_of(f"ablations/{ablation}")
    assert rest == [f"ablations/{ablation}"]
    result = run(["tasks/digits_mlp.gin", method, *rest])
    assert result["status"] == "finished"
    names_itself = "Runner.method" in (CONFIG_DIR / "ablations" / ablation).read_text()
    assert f"{result['method']}.gin" == (ablation if names_itself else method.split("/")[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_runs(run, loss):
    """As its header says."""
    files = files_of(f"losses/{loss}")
    result = run(files)
    assert result["status"] == "finished"
    assert f"{result['method']}.gin" == loss
    assert files[-1] == f"losses/{loss}"


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_runs_and_learns_no_loss(run, baseline):
    """As its header says."""
    files = files_of(f"baselines/{baseline}")
    result = run(files)
    assert (result["status"], result["init_steps"]) == ("finished", 0)
    assert f"{result['method']}.gin" == baseline
    assert (result["select"] is None) == (baseline != "early_stopped.gin")


def test_the_baseline_of_label_smoothing_descends_torchs_where_probabilities_vanish(few_examples):
    """In float32 a softmax is 0 there, and a loss of probabilities has no slope left."""
    plan = load(files_of("baselines/label_smoothing.gin")).build()
    with process_left_as_it_was():
        state = State(plan, 0, torch.device("cpu"), few_examples)
    inputs, drawn = state.draws("")[0]()
    with torch.no_grad():
        for theta in state.model.parameters():
            theta.mul_(8)
    logits = state.model(inputs)
    labels = drawn.argmax(-1) if drawn.is_floating_point() else drawn
    assert 0 < logits.softmax(-1).eq(0).sum() < logits.numel()
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    slope = torch.autograd.grad(expected, [*state.model.parameters()])
    learned, found = state.learner.problem.gradient((inputs, drawn))
    torch.testing.assert_close(learned.learned_loss, expected.detach())
    torch.testing.assert_close(found, [*slope])


@pytest.mark.parametrize("overlay", TRAINING)
def test_every_overlay_of_a_training_runs(run, overlay):
    """As its header says."""
    assert run(files_of(f"training/{overlay}"))["status"] == "finished"


@pytest.mark.parametrize("file", TRANSFER)
def test_every_way_to_transfer_runs(start, tmp_path, file):
    files = ["tasks/digits_mlp.gin", f"transfer/{file}"]
    start(files, f"--gin_param=LOSS = {str(FORMAT_1)!r}")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], f"{result['method']}.gin") == ("finished", file)


@pytest.mark.parametrize(
    "file",
    thinned(((file,) for file in OWN_DATA), keep=lambda file: file in ("arrays.gin", "table.gin")),
)
def test_every_example_of_own_data_runs(run, file):
    assert run([f"own_data/{file}", "methods/baseline.gin"])["status"] == "finished"


def test_the_quickstart_runs(run):
    assert run(["quickstart.gin"])["status"] == "finished"


def files_of(file):
    """The gin files of the command in a file's header."""
    header = re.match(r"(#.*\n)+", (CONFIG_DIR / file).read_text())[0]
    command = header.replace("\\\n#", "").split("python tools/train.py")[1].splitlines()[0]
    return re.findall(r"--gin_file=gin_configs/(\S+)", command)


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith(NO_RUNS)])
def test_a_file_says_how_to_run_it(file):
    files = files_of(file)
    assert file in files
    assert load(files).unread == ()


@pytest.mark.parametrize(
    "file",
    thinned(
        ((file,) for file in FILES if file.startswith(SWEEPS)),
        keep=lambda file: file not in ("protocol/regression.gin", "protocol/mnist.gin"),  # large
    ),
)
def test_a_sweep_says_how_to_run_it_and_what_it_comes_to(file):
    header = re.match(r"(#.*\n)+", (CONFIG_DIR / file).read_text())[0]
    assert f"#   python tools/sweep.py run {file} --data_dir=DIR\n" in header
    runs = len(cells.load([file])[1])
    told = re.search(r"\b(\d+) runs", header) or re.search(r"\| (\d+) \|", row_of(file))
    assert int(told[1]) == runs


def test_a_search_says_how_to_carry_it_out():
    (file,) = (file for file in FILES if file.startswith("search/"))
    header = re.match(r"(#.*\n)+", (CONFIG_DIR / file).read_text())[0]
    assert f"python tools/sweep.py search {file}" in header
    assert f"{search.load(file).trials} runs" in header and row_of(file)


def row_of(file):
    """The index's line about a file."""
    lines = (CONFIG_DIR / "README.md").read_text().splitlines()
    return next(line for line in lines if f"[`{file}`]" in line)


@pytest.mark.parametrize("file", FILES)
def test_the_index_lists_every_file(file):
    index = (CONFIG_DIR / "README.md").read_text()
    assert f"[`{file}`]({file})" in index


def test_the_index_lists_nothing_else():
    index = (CONFIG_DIR / "README.md").read_text()
    assert sorted(re.findall(r"\]\((\S+\.gin)\)", index)) == FILES


# --- against gin itself ---


@pytest.fixture
def gins_own_config():
    """What gin says of the files of a run after it has built it: all parameters of all its parts.

    -> values by scope, full name and parameter. The backbone has shapes only, and no values.
    """
    prefixes = list(gin.config._LOCATION_PREFIXES)
    gin.add_config_file_search_path(str(CONFIG_DIR))

    def operative(files):
        gin.clear_config()
        gin.parse_config_files_and_bindings(
            [str(CONFIG_DIR / file) for file in files], [f"LOSS = {str(FORMAT_1)!r}"]
        )
        runner = gin.get_configurable("metaloss.Runner")()
        with torch.device("meta"):
            model = runner.backbone(input_shape=(3, 32, 32), outputs=10)
        runner.base_optimizer(parameters=model.parameters())
        if runner.schedule is not None:
            optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
            runner.schedule(optimizer=optimizer, steps=10)
        for part in (runner.initialization, runner.adaptation):
            if hasattr(part, "descent"):  # a recipe too, which a run calls when it begins
                part.descent(groups=[Group({"phi": torch.zeros(1)}, 0.1)])
        return by_parameter(gin.operative_config_str())

    yield operative
    gin.config._LOCATION_PREFIXES[:] = prefixes
    gin.clear_config()


def by_parameter(text):
    """What gin text binds, in full names: gin shortens them to the last word where it can."""
    found = {}
    for name, value in bindings_of(text, "").items():
        path, _, parameter = name.rpartition(".")
        scope, _, component = path.rpartition("/")
        if parameter:  # else it is a macro
            found[scope, look_up(component), parameter] = in_full(value)
    return found


def in_full(value):
    if isinstance(value, Reference):
        scope, _, component = value.name.rpartition("/")
        return f"@{scope}/{look_up(component)}", value.evaluate
    if isinstance(value, Macro):
        return str(FORMAT_1)
    return [in_full(item) for item in value] if isinstance(value, (list, tuple)) else value


RUNS = [
    *(files_of(file) for file in FILES if not file.startswith(NO_RUNS)),
    *(["tasks/digits_mlp.gin", f"methods/{method}"] for method in METHODS),
]


@pytest.mark.parametrize("files", RUNS, ids="+".join)
def test_our_config_is_the_one_that_gin_makes_of_the_files(gins_own_config, files):
    """Scopes, macros, references, includes and defaults are resolved as gin resolves them."""
    ours = by_parameter(load(files, [f"LOSS = {str(FORMAT_1)!r}"]).text)
    assert len(ours) > 15
    assert gins_own_config(files) == ours
