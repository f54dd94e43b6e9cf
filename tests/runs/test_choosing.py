"""Data to choose by: the split "select", the best model kept, the choice among what was tried."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from metaloss import TASKS, config
from metaloss.experiments import settings
from metaloss.runs import references
from metaloss.runs.trained.model import load_model
from metaloss.tasks.preparation.splits import with_selection
from tests.helpers import rows, train
from tests.small_runs import write_run

SELECT = "Runner.select_fraction = 0.5"
KEEP = (SELECT, "Runner.keep_best = 'select'", "Runner.evaluate_every = 2")
#: At this rate the error goes up and down, so that the best model is not the last.
RESTLESS = (*KEEP, "base_optimizers.sgd.lr = 3.0")


def digits(seed=0):
    return TASKS["digits"]().load(None, torch.Generator().manual_seed(seed))


def rows_of(data, split):
    inputs, labels = data.splits[split]
    return [(x.tobytes(), int(y)) for x, y in zip(inputs.numpy(), labels, strict=True)]


def evaluations(folder, split):
    return {row["step"]: row["error_rate"] for row in rows(folder) if row.get("split") == split}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that keeps its best model."""
    folder = tmp_path_factory.mktemp("kept")
    assert train(folder, "baseline", [*RESTLESS, "Runner.steps = 12"]) == 0
    return folder


def test_the_split_to_choose_by_is_a_part_of_the_validation_split_and_of_nothing_else():
    before = digits()
    data = with_selection(before, 0.4, torch.Generator().manual_seed(0))
    valid, select = rows_of(data, "valid"), rows_of(data, "select")
    assert sorted(valid + select) == sorted(rows_of(before, "valid"))
    assert len(select) == round(0.4 * len(before.splits["valid"][0]))
    for split in ("train", "test"):
        assert all(
            a.equal(b) for a, b in zip(data.splits[split], before.splits[split], strict=True)
        )


def test_an_examples_weight_stays_with_it():
    before = digits()
    weights = before.splits["valid"][1].double() + 1
    weighted = replace(before, weights={"train": torch.ones(3), "valid": weights})
    data = with_selection(weighted, 0.5, torch.Generator().manual_seed(0))
    assert data.weights["valid"].equal(data.splits["valid"][1].double() + 1)


def test_a_split_to_choose_by_changes_no_bit_of_the_training(tmp_path):
    """Where nothing is learned from the validation data, θ is the same with and without it."""
    for name, extra in (("with", [SELECT]), ("without", [])):
        assert train(tmp_path / name, "baseline", [*extra, "Runner.steps = 6"]) == 0
    models = [load_model(tmp_path / name).model.state_dict() for name in ("with", "without")]
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


def test_a_run_says_what_the_split_to_choose_by_says_and_looks_at_the_test_once(tmp_path):
    steps = ["Runner.steps = 6", "Runner.evaluate_every = 2"]
    assert train(tmp_path / "run", "adalfl", [SELECT, *steps]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["select"] == evaluations(tmp_path / "run", "select")[6]
    assert result["best_step"] is None
    assert list(evaluations(tmp_path / "run", "select")) == [2, 4, 6]
    assert len(evaluations(tmp_path / "run", "test")) == 1


def test_the_best_model_is_the_one_that_is_tested_and_loaded(kept):
    result = json.loads((kept / "result.json").read_text())
    found = evaluations(kept, "select")
    assert result["select"] == min(found.values())
    assert result["best_step"] == min(found, key=found.get)  # the first of equal ones
    assert result["best_step"] < 12
    trained = load_model(kept)
    assert trained.step == result["best_step"]
    assert trained.evaluate("select")["error_rate"] == result["select"]
    assert trained.evaluate("test")["error_rate"] == result["test"]


def test_a_run_that_is_resumed_keeps_the_same_best_model(kept, tmp_path):
    """Cut short after its best step by a checkpoint, and gone on with."""
    half = [*RESTLESS, "Runner.steps = 12", "Runner.checkpoint_every = 4"]
    assert train(tmp_path / "one", "baseline", half) == 0
    (tmp_path / "one" / "result.json").unlink()
    (tmp_path / "one" / "checkpoint.pt").unlink()  # the one before is of step 8
    assert train(tmp_path / "one", "baseline", half, resume=True) == 0
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (tmp_path / "one", kept))
    for name in ("select", "best_step", "test"):
        assert ours[name] == theirs[name]


def test_a_best_model_needs_data_to_choose_by(refused):
    line = refused("--gin_param=Runner.keep_best = 'select'")
    assert "keep_best" in line and "Runner.select_fraction beside it" in line


def test_how_often_a_run_is_evaluated_counts_where_the_best_model_is_kept():
    """Else it is a way to watch a run, and two that differ in it are averaged."""

    def read(*bindings):
        text = config.load(("tasks/digits_mlp.gin", "methods/baseline.gin"), bindings).text
        return settings.read(text, "config.gin")

    often, seldom = "Runner.evaluate_every = 2", "Runner.evaluate_every = 3"
    assert read(often).key == read(seldom).key
    keep = "Runner.keep_best = 'valid'"
    assert read(often, keep).key != read(seldom, keep).key
    assert read(often, keep).difference(read(seldom, keep)) == (("Runner.evaluate_every", 2),)


# --- the choice ---


def write_tried(folder, rate, selections, tests, status="finished"):
    for seed, (select, test) in enumerate(zip(selections, tests, strict=True)):
        files = ("tasks/digits_mlp.gin", "methods/baseline.gin")
        run = write_run(
            folder / f"{rate}" / f"seed{seed}", files,
            [f"base_optimizers.sgd.lr = {rate}", "Runner.select_fraction = 0.5"], seed, test,
            status if seed == 0 else "finished",
        )  # fmt: skip
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**result, "select": select}))


def test_the_choice_is_made_by_the_split_for_it_and_shows_no_other_test_error(tmp_path):
    """.1 is best by select, .2 by test, and .3 lost a seed."""
    from metaloss.experiments import groups, records
    from metaloss.experiments.reports import choice, formats

    write_tried(tmp_path, 0.1, (0.10, 0.12), (0.31, 0.33))
    write_tried(tmp_path, 0.2, (0.20, 0.22), (0.21, 0.21))
    write_tried(tmp_path, 0.3, (None, 0.01), (0.5, 0.01), status="diverged")
    found, _ = groups.group(records.read([tmp_path]).runs)
    (row,) = choice.document(found).sections[0].blocks[0].rows
    assert [cell.text for cell in row] == [
        "digits", "mlp", "baseline", "3", "6", "0.06", "base_optimizers.sgd.lr = 0.1",
        ".1100±.0141 (2)", ".3200±.0141 (2)",
    ]  # fmt: skip
    text = formats.markdown(choice.document(found), {})
    assert ".2100" not in text


# --- trivial references, and splits of tables ---


def test_the_references_of_a_line_are_its_variance_and_nothing():
    """y = 2x: the training mean errs by the variance around it, and ridge regression hardly."""
    data = TASKS["diabetes"]().load(None, torch.Generator().manual_seed(0))
    splits = {name: (x[:, :1], 2 * x[:, :1]) for name, (x, _) in data.splits.items()}
    constant, ridge = references.references(replace(data, splits=splits))
    train, test = (splits[name][1].double().numpy() for name in ("train", "test"))
    assert constant.errors.mean() == pytest.approx(((test - train.mean()) ** 2).mean(), rel=1e-6)
    assert ridge.errors.mean() < 1e-6 * constant.errors.mean()


def test_the_references_of_classes_are_the_largest_one_and_a_linear_model():
    constant, logistic = references.references(digits())
    assert constant.errors.mean() == pytest.approx(0.9, abs=0.01)
    assert logistic.errors.mean() < 0.05


def test_a_table_is_split_anew_by_its_number_and_scaled_by_the_rows_that_are_asked_for():
    from sklearn.datasets import load_diabetes

    target = load_diabetes().target

    def load(**arguments):
        return TASKS["diabetes"](**arguments).load(None, torch.Generator().manual_seed(0))

    shipped, other = load(), load(split=1, target_range="train")
    values = [data.targets.undo(data.splits["test"][1]).flatten() for data in (shipped, other)]
    assert sorted(values[0].tolist()) != sorted(values[1].tolist())
    whole, train = shipped.targets, other.splits["train"][1]
    assert float(whole.zero) == target.min()
    assert float(whole.unit) == target.max() - target.min()
    assert (float(train.min()), float(train.max())) == (0.0, 1.0)
    assert np.isin(np.concatenate([v.numpy().round(3) for v in values]), target.round(3)).all()


# --- the commands ---


@pytest.fixture
def sweep(command, tmp_path):
    """Runs tools/sweep.py on a small sweep: command, flags -> exit code, stdout, stderr."""
    spec = tmp_path / "spec.gin"
    spec.write_text(
        "Sweep.tasks = ['tasks/digits_mlp.gin']\n"
        "Sweep.methods = ['methods/baseline.gin']\n"
        "Sweep.seeds = 1\n"
        "Sweep.parameters = {'base_optimizers.sgd.lr': [0.1, 0.2]}\n"
        "Sweep.bindings = ['Runner.steps = 4', 'Runner.figures = 0']\n"
    )
    return lambda name, *flags: command(
        "sweep", name, str(spec), f"--output_dir={tmp_path / 'runs'}", *flags
    )


def test_references_of_a_sweep_are_told_once_for_each_of_its_data(sweep):
    code, text, _ = sweep("references")
    assert code == 0
    assert text.count("logistic regression") == 1
    assert "| digits_mlp |" in text


@pytest.mark.full
def test_a_sweep_without_data_to_choose_by_says_what_is_missing(sweep, tmp_path):
    code, text, errors = sweep("run", "--device=cpu")
    assert code == 0, text + errors
    code, _, errors = sweep("choose")
    assert code == 2
    assert "give Runner.select_fraction, as ablations/select.gin does" in errors


@pytest.mark.full  # its runs are processes, each of which imports torch
def test_a_sweep_chooses(sweep):
    select = f"--gin_param=Sweep.bindings = ['Runner.steps = 4', 'Runner.figures = 0', {SELECT!r}]"
    assert sweep("run", "--device=cpu", select)[0] == 0
    code, text, _ = sweep("choose", select)
    assert code == 0
    assert len([line for line in text.splitlines() if line.startswith("| digits ")]) == 1
    assert "base_optimizers.sgd.lr = 0." in text
