"""Several seeds of a run at once: each leaves the folder that it leaves alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from metaloss.errors import InputError
from metaloss.machine import sealed, seeding
from metaloss.representations.saved.learned_loss import load_loss
from metaloss.runs import launch
from metaloss.runs.lockstep import StackedData
from metaloss.runs.run import Run
from metaloss.tasks import TASKS
from tests import helpers
from tests.helpers import COSTS, rows, thinned

#: What the runs of a method have besides those of `helpers.train`.
EXTRA = {
    "baseline": [],
    "ml3": ["meta_optimizers.offline_unrolled.inner_steps = 2"],
    "adalfl": [
        "meta_optimizers.offline_unrolled.inner_steps = 1",
        "meta_optimizers.online_one_step.meta_lr = 1e-3",
        "Runner.on_unhealthy = 'task_loss'",  # as the trial of two of the seeds fails
    ],
}
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three seeds of AdaLFL that nothing has disturbed; -> their folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder / "all") == 0
    return folder / "all"


def train(folder: Path, seed=SEEDS, method: str = "adalfl", extra: tuple = (), **flags) -> int:
    momentum = "base_optimizers.sgd.momentum = 0.9"
    return helpers.train(folder, method, (*EXTRA[method], momentum, *extra), seed=seed, **flags)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def numbers(tree) -> list:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in (key, *numbers(value))]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in numbers(value)]
    return [tree]


def assert_same(one, other, rounding: float) -> None:
    """Two trees of tensors and plain data are equal, floating-point numbers up to rounding."""
    for x, y in zip(numbers(one), numbers(other), strict=True):
        if torch.is_tensor(x) and x.is_floating_point():
            torch.testing.assert_close(x, y, rtol=rounding, atol=rounding)
        elif torch.is_tensor(x):
            assert x.equal(y)
        elif isinstance(x, float):
            assert x == pytest.approx(y, rel=rounding, abs=rounding)
        else:
            assert x == y


def assert_same_run(one: Path, other: Path, rounding: float) -> None:
    """Two folders hold the same files, metrics, results and states; the clock aside."""
    names = [
        {str(path.relative_to(folder)).partition(".vm")[0] for path in folder.rglob("*")}
        for folder in (one, other)
    ]
    plain = [{name for name in found if "tfevents" not in name} for found in names]
    assert plain[0] - {"checkpoint.previous.pt"} == plain[1] - {"checkpoint.previous.pt"}
    assert_same(rows(one), rows(other), rounding)
    results = [result(folder) for folder in (one, other)]
    for found in results:
        for name in COSTS:
            del found[name]
    assert_same(*results, rounding)
    states = [sealed.load(folder / "checkpoint.pt")["state"] for folder in (one, other)]
    for state in states:
        # Torch's own generators, of dropout masks, are of all seeds together.
        del state["seconds"], state["parts"], state["global"]
    assert_same(*states, rounding)
    if (one / "loss").is_dir():
        losses = [load_loss(folder).state_dict() for folder in (one, other)]
        assert_same(*losses, rounding)


@pytest.mark.full  # three seeds together, and each alone
@pytest.mark.parametrize("method", EXTRA)
def test_each_seed_leaves_the_folder_that_it_leaves_alone(method, tmp_path, capsys):
    assert train(tmp_path / "all", method=method) == 0
    printed = capsys.readouterr().out.splitlines()
    for seed, line in zip(SEEDS, printed, strict=True):
        assert train(tmp_path / f"alone{seed}", seed, method) == 0
        assert_same_run(tmp_path / "all" / f"seed{seed}", tmp_path / f"alone{seed}", 1e-5)
        assert line.startswith(f"{tmp_path / 'all' / f'seed{seed}'}: finished")
        meta = json.loads((tmp_path / "all" / f"seed{seed}" / "meta.json").read_text())
        assert (meta["seed"], meta["seeds_at_once"]) == (seed, list(SEEDS))
    sizes = [
        (folder / "checkpoint.pt").stat().st_size
        for folder in (tmp_path / "all" / "seed1", tmp_path / "alone1")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # no seed's file holds the others' numbers


class Killed(BaseException):
    """As the kernel does it: no handler of ours runs."""


def dying(monkeypatch, name: str, when) -> None:
    """Has the process die where `when(run)`, before a method of Run."""
    method = getattr(Run, name)

    def die(self, *arguments):
        if when(self):
            raise Killed
        return method(self, *arguments)

    monkeypatch.setattr(Run, name, die)


def assert_all_same(folder: Path, other: Path, rounding: float = 0.0) -> None:
    for seed in SEEDS:
        assert_same_run(folder / f"seed{seed}", other / f"seed{seed}", rounding)


@pytest.mark.parametrize(
    ("moment", "seed"),  # steps of both phases
    thinned([(5, 0), (11, 2), (20, 1)], keep=lambda moment, _: moment == 20),
)
def test_dead_at_any_step_and_resumed_is_the_run_left_alone(
    moment, seed, whole, tmp_path, monkeypatch
):
    """Also where the seeds before one were saved already."""

    def when(run):
        return run.seed == seed and run.state.init_steps + run.state.steps == moment

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("_record", "_save_checkpoint"):
            dying(patch, name, when)
        train(tmp_path / "killed")
    assert launch.train(output_dir=str(tmp_path / "killed"), resume=True, device="cpu") == 0
    assert_all_same(tmp_path / "killed", whole)


def test_killed_between_two_checkpoints_of_one_step(whole, tmp_path, monkeypatch):
    """Seed 0 is saved at step 8, seeds 1 and 2 are not: all go on from step 4."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, "_save_checkpoint", lambda run: (run.seed, run.state.steps) == (1, 8))
        train(tmp_path / "killed")
    steps = [
        sealed.load(tmp_path / "killed" / f"seed{seed}" / "checkpoint.pt")["state"]["steps"]
        for seed in SEEDS
    ]
    assert steps == [8, 4, 4]
    assert train(tmp_path / "killed", resume=True) == 0
    assert_all_same(tmp_path / "killed", whole)


@pytest.mark.full
def test_masks_and_statistics_go_on_bit_for_bit(tmp_path, monkeypatch, data_dir):
    """With dropout, BatchNorm and augmented images."""
    extra = (
        "Runner.task = @tasks.cifar10()",
        "tasks.cifar10.batch_size = 8",
        "Runner.backbone = @backbones.wide_resnet",
        "backbones.wide_resnet.depth = 10",
        "backbones.wide_resnet.width = 1",
        "backbones.wide_resnet.dropout = 0.3",
        "meta_optimizers.offline_unrolled.steps = 2",
        "meta_optimizers.offline_unrolled.scale_steps = 2",
        "Runner.steps = 6",
    )
    options = {"seed": (0, 1), "extra": extra, "data_dir": data_dir}
    assert train(tmp_path / "whole", **options) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dying(patch, "_record", lambda run: run.state.steps == 5)
        train(tmp_path / "killed", **options)
    assert train(tmp_path / "killed", resume=True, **options) == 0
    for seed in (0, 1):
        folders = [tmp_path / name / f"seed{seed}" for name in ("killed", "whole")]
        assert_same_run(*folders, 0)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def stopping(monkeypatch, step: int) -> None:
    """SIGTERM arrives in a step of the training."""
    after_step = Run._record

    def terminate(self, phase, made, *rest):
        if (phase, made, self.seed) == ("train", step, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, phase, made, *rest)

    monkeypatch.setattr(Run, "_record", terminate)


def test_sigterm_saves_all_and_each_goes_on_alone_or_together(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stopping(patch, 7)
        assert train(tmp_path / "stopped") == 128 + signal.SIGTERM
    for seed in SEEDS:
        found = result(tmp_path / "stopped" / f"seed{seed}")
        assert (found["status"], found["steps"], found["test"]) == ("stopped", 7, None)
    assert train(tmp_path / "stopped" / "seed1", 1, resume=True) == 0  # alone
    assert train(tmp_path / "stopped", resume=True) == 0  # the two that are left
    assert_all_same(tmp_path / "stopped", whole, 1e-5)


def test_runs_that_were_alone_go_on_together_from_the_same_step(whole, tmp_path, monkeypatch):
    for seed, step in ((0, 7), (1, 7), (2, 9)):
        with monkeypatch.context() as patch:
            after_step = Run._record

            def stop(self, phase, made, *rest, step=step, after_step=after_step):
                self.stop = self.stop or (phase, made) == ("train", step)
                after_step(self, phase, made, *rest)

            patch.setattr(Run, "_record", stop)
            assert train(tmp_path / "runs" / f"seed{seed}", seed) == 128 + signal.SIGTERM
    with pytest.raises(InputError) as refused:
        train(tmp_path / "runs", resume=True)
    with pytest.raises(InputError, match=r"holds no run of seed 5 · known: 0, 1, 2$"):
        launch.train(output_dir=str(tmp_path / "runs"), resume=True, seed=(0, 5))
    before = files(tmp_path / "runs")
    with pytest.raises(InputError):
        train(tmp_path / "runs", (0, 3), resume=True)  # seed 3 would be a new one
    assert files(tmp_path / "runs") - before <= {tmp_path / "runs" / "seed3" / ".lock"}
    assert str(refused.value) == (
        "only runs that stand at the same step go on together (seed 0 at meta-step 9, step 7, "
        "seed 1 at meta-step 9, step 7, seed 2 at meta-step 9, step 9): --resume each alone, by "
        "its --seed and its own --output_dir"
    )
    assert train(tmp_path / "runs", (0, 1), resume=True) == 0
    assert_same_run(tmp_path / "runs" / "seed1", whole / "seed1", 1e-5)


def test_a_seed_that_diverges_ends_and_the_others_go_on(whole, tmp_path, monkeypatch, capsys):
    draw, batches = StackedData.draw, []

    def spoilt(self, split, *rest):
        inputs, labels = draw(self, split, *rest)
        batches.append(split)
        if batches.count("train") == 6:  # of the training; initialisations draw alone
            inputs[1] = torch.inf
        return inputs, labels

    monkeypatch.setattr(StackedData, "draw", spoilt)
    assert train(tmp_path / "all") == 3
    assert [result(tmp_path / "all" / f"seed{seed}")["status"] for seed in SEEDS] == [
        "finished",
        "diverged",
        "finished",
    ]
    assert result(tmp_path / "all" / "seed1")["steps"] == 6  # where it is logged
    for seed in (0, 2):
        assert_same_run(tmp_path / "all" / f"seed{seed}", whole / f"seed{seed}", 0)
    capsys.readouterr()
    assert train(tmp_path / "all", resume=True) == 3
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_skipped_meta_step_is_counted_by_its_seed(tmp_path, monkeypatch):
    """Also in a training that an initialisation came before."""
    draw, batches = StackedData.draw, []

    def spoilt(self, split, *rest):
        inputs, labels = draw(self, split, *rest)
        batches.append(split)
        if split == "valid" and batches.count("valid") == 2:
            inputs[1] = torch.inf
        return inputs, labels

    monkeypatch.setattr(StackedData, "draw", spoilt)
    assert train(tmp_path / "all", extra=("Runner.on_unhealthy = 'warn'",)) == 0
    skipped = [result(tmp_path / "all" / f"seed{seed}")["skipped_meta_steps"] for seed in SEEDS]
    assert skipped == [0, 1, 0]


def test_what_is_asked_of_several_seeds(refused, tmp_path):
    twice = ("--seed=1", "--seed=1")
    assert refused(*twice) == "--seed 1 is given twice"
    several = ("--seed=0", "--seed=1")
    assert refused(*several, files=("tasks/digits_mlp.gin", "methods/meta_lr_letter.gin")) == (
        "a learned learning rate is one number of the optimizer, which a stack has once: train "
        "these seeds one at a time"
    )
    engine = "--gin_param=meta_optimizers.online_one_step.engine = 'evolution'"
    assert refused(*several, engine) == (
        "engine 'evolution' mixes the numbers of a vector, which would be of all seeds together: "
        "train them one at a time"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused("--resume", f"--output_dir={empty}", files=()) == (
        f"{empty} holds no run to go on with: give --gin_file"
    )


def test_a_rehearsal_of_several_seeds(train, tmp_path, capsys):
    files = ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl_letter.gin"]
    code, _ = train(*files, "--seed=0", "--seed=1", "--dry_run", f"--output_dir={tmp_path / 'x'}")
    assert code == 0
    assert not (tmp_path / "x").exists()


def test_batches_are_those_that_each_seed_draws_alone(data_dir):
    """Of augmented bytes with a mean of their own split, and of plain floats."""
    for task in (TASKS["cifar10"](), TASKS["digits"]()):
        alone, together = (
            [task.load(data_dir, seeding.stream(seed, "split")) for seed in SEEDS] for _ in range(2)
        )
        if alone[0].images is not None:
            for i, data in enumerate((*alone, *together)):
                data.images.mean.copy_(data.images.mean + i % len(SEEDS))
        stacked = StackedData(together)
        for split in ("train", "valid"):
            streams = [[seeding.stream(seed, split) for seed in SEEDS] for _ in range(2)]
            for _ in range(2):
                inputs, labels = stacked.draw(split, 8, streams[0])
                for i, data in enumerate(alone):
                    x, y = data.draw(split, 8, streams[1][i])
                    assert x.equal(inputs[i])
                    assert y.equal(labels[i])
                    assert all(map(torch.equal, data.splits[split], together[i].splits[split]))


def test_splits_of_other_sizes_are_refused():
    several = [
        TASKS["digits"](valid_fraction=fraction).load(Path(), seeding.stream(0, "split"))
        for fraction in (0.1, 0.2)
    ]
    with pytest.raises(InputError) as refused:
        StackedData(several)
    assert str(refused.value) == (
        "the seeds have train splits of other sizes (1293, 1150): train them one at a time"
    )
