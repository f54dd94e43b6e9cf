"""Training as people do it: schedules, epochs, clipping, accumulation, by gin and with resuming."""

from __future__ import annotations

import ctypes
import json
import math
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metaloss import config, load_model
from metaloss.errors import ArgumentError, InputError
from metaloss.machine import sealed
from metaloss.runs.run import Run
from metaloss.runs.state import State
from metaloss.testing.certification.certify import certify, planned_case
from tests.helpers import (
    METHODS,
    QUICK,
    ROOT,
    Killed,
    assert_same_state,
    differences,
    killed_when,
    rows,
    tool,
    train,
)

SCHEDULED = (
    "Runner.schedule = @schedules.cosine",
    "schedules.cosine.warm_up = 4",
    "schedules.cosine.least = 0.1",
)
FILES = ["tasks/digits_mlp.gin", "methods/baseline.gin"]
FULL = pytest.mark.full  # the rest of a product
PAGE = ROOT / "docs" / "training.md"
#: All that a run can have beside its method.
ALL = (
    *SCHEDULED,
    "Runner.clip_norm = 0.5",
    "Runner.micro_batches = 2",
    "Runner.ema = 0.9",
    "Runner.keep_best = 'valid'",
    "Runner.patience = 100",
)


def base_lrs(folder):
    """By step, of the training."""
    found = rows(folder)
    return {r["step"]: r["base_lr"] for r in found if r["phase"] == "train" and "base_lr" in r}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each method with all of it; -> their folder."""
    root = tmp_path_factory.mktemp("whole")
    for method in METHODS:
        assert train(root / method, method, ALL) == 0
    assert train(root / "plain", "baseline", ["Runner.steps = 1"]) == 0
    return root


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_it_is_the_run_left_alone(method, whole, tmp_path):
    """Killed in the warm-up, and after it."""
    for moment in (3, 9):
        with killed_when(lambda state, moment=moment: state.steps == moment):
            train(tmp_path / "run", method, ALL, resume=True)
    assert train(tmp_path / "run", method, ALL, resume=True) == 0
    assert rows(tmp_path / "run") == rows(whole / method)
    assert_same_state(tmp_path / "run", whole / method)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_a_baseline_is_the_loop_that_people_write(clip, whole, tmp_path):
    """Accumulation, clipping and a schedule by torch's own functions, bit for bit."""
    folder, extra = whole / "baseline", ALL
    if clip == "value":
        folder, extra = tmp_path, (*SCHEDULED, "Runner.clip_value = 0.01", "Runner.steps = 3")
        assert train(folder, "baseline", extra) == 0
    plan = config.load(FILES, [*QUICK, *extra]).build()
    state = State(plan, 0, torch.device("cpu"), Path())
    draw, model = state.draws("")[0], state.model
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scheduler = plan.schedule(optimizer=optimizer, steps=plan.steps)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(plan.steps):
        batches = draw() if clip == "norm" else [draw()]
        for inputs, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(inputs), labels)
            (loss / len(batches)).backward()
        if clip == "norm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        else:
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
    saved = sealed.load(folder / "checkpoint.pt")["state"]
    assert not differences(dict(model.state_dict()), dict(saved["model"]))
    if clip == "norm":
        assert not differences(dict(average.state_dict()), dict(saved["average"]))


def test_an_equal_mean_begins_late_and_is_evaluated_from_there(tmp_path, monkeypatch):
    """Stochastic weight averaging: of θ after each step of the training's second half."""
    seen, update = [], AveragedModel.update_parameters

    def noting(self, model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        update(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", noting)
    asked = ("Runner.swa = 0.5", "Runner.evaluate_every = 7")
    assert train(tmp_path / "run", "baseline", asked) == 0
    assert len(seen) == 7
    found = load_model(tmp_path / "run", weights="average")
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in seen]).mean(0))
    evaluated = [row for row in rows(tmp_path / "run") if "split" in row]
    assert all(("swa_loss" in row) == (row["step"] > 7) for row in evaluated)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_metrics"]["swa_loss"] == found.evaluate("test")["loss"]
    with killed_when(lambda state: state.steps == 10):
        train(tmp_path / "killed", "baseline", asked)
    assert train(tmp_path / "killed", "baseline", asked, resume=True) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "run")
    assert_same_state(tmp_path / "killed", tmp_path / "run")
    with pytest.raises(ArgumentError, match="Runner.swa = 3: give None beside Runner.ema"):
        config.load(FILES, [*QUICK, "Runner.swa = 3", "Runner.ema = 0.9"]).build()


def test_the_running_mean_is_evaluated_beside_the_model_and_loaded(whole):
    folder = whole / "adalfl"
    result = json.loads((folder / "result.json").read_text())
    for averaged in (False, True):
        found = load_model(folder, weights="average" if averaged else "tested").evaluate("test")
        names = {name: f"ema_{name}" if averaged else name for name in found}
        assert found == {name: result["test_metrics"][names[name]] for name in found}
    evaluated = [row for row in rows(folder) if "split" in row]
    assert all(row["ema_loss"] != row["loss"] for row in evaluated)
    with pytest.raises(InputError, match="has no running mean of its weights"):
        load_model(folder.parent / "plain", weights="average")


def test_the_meta_gradient_of_a_run_goes_through_all_of_it():
    """As `tools/check_gradients.py` certifies it; the norm is clipped in each of the steps."""
    bindings = [*QUICK, *ALL, "Runner.checkpointed = ('2',)", "Runner.clip_norm = 0.01"]
    parsed = config.load(["tasks/digits_mlp.gin", "methods/adalfl.gin"], bindings)
    case = planned_case(parsed.build(), Path(), 0, 6)
    problem, step = case.make(), case.batches[0]
    assert len(step) == 2  # micro-batches
    problem.plain_step(step)
    norm = torch.stack([p.grad.norm() for p in problem.theta]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    for inner_steps in (1, 2):
        found = certify(case, "exact", 1, inner_steps)
        assert found.holds, found


@pytest.mark.parametrize(
    "method", [m if m in ("baseline", "adalfl") else pytest.param(m, marks=FULL) for m in METHODS]
)
def test_recomputed_activations_change_no_bit(method, whole, tmp_path, monkeypatch):
    """Of the run with all else; each module that is named is run again in the backward pass."""
    calls = ctypes.c_int()  # a list, which Python sees into, passes on trial would put back
    forward = torch.nn.ReLU.forward

    def counted(module, x):
        calls.value += 1
        return forward(module, x)

    monkeypatch.setattr(torch.nn.ReLU, "forward", counted)
    steps = ("Runner.steps = 4", "Runner.patience = None", "Runner.ema = None")
    made = []
    for name, extra in (("kept", ()), ("again", ("Runner.checkpointed = ('2',)",))):
        calls.value = 0
        assert train(tmp_path / name, method, [*ALL, *steps, *extra]) == 0
        made.append(calls.value)
    assert made[1] > made[0] + 4
    assert rows(tmp_path / "kept") == rows(tmp_path / "again")


#: At a rate of 0 no evaluation is better than the first one.
IMPATIENT = ("Runner.keep_best = 'valid'", "Runner.patience = 2", "Runner.evaluate_every = 2",
             "base_optimizers.sgd.lr = 1e-12")  # fmt: skip


def test_a_run_ends_early_when_its_patience_is_over(tmp_path, monkeypatch):
    """Also where it dies between its last checkpoint and its end, and is resumed."""

    def die(self):
        raise Killed

    monkeypatch.setattr(Run, "finish", die)
    with pytest.raises(Killed):
        train(tmp_path, "baseline", IMPATIENT)
    monkeypatch.undo()
    assert train(tmp_path, "baseline", IMPATIENT, resume=True) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    told = [result[name] for name in ("status", "steps", "best_step", "stopped_early")]
    assert told == ["finished", 6, 2, True]


@pytest.mark.parametrize(
    "method", [m if m == "ml3" else pytest.param(m, marks=FULL) for m in METHODS]
)
def test_a_run_stops_when_its_time_is_over_and_goes_on_with_more(
    method, tmp_path, monkeypatch, whole
):
    """In the initialisation and in the training; the time before a resume counts."""
    initial = json.loads((whole / method / "result.json").read_text())["init_steps"]
    monkeypatch.setattr(Run, "seconds", lambda run: 1.0 * (run.state.init_steps + run.state.steps))
    for seconds in (4, 13):
        code = train(tmp_path, method, ALL, resume=True, max_seconds=seconds)
        result = json.loads((tmp_path / "result.json").read_text())
        steps = max(0, seconds + 1 - initial)  # the first one beyond
        assert (code, result["status"], result["steps"]) == (143, "stopped", steps)
    monkeypatch.undo()
    assert train(tmp_path, method, ALL, resume=True) == 0
    assert rows(tmp_path) == rows(whole / method)
    assert_same_state(tmp_path, whole / method)


@pytest.mark.parametrize("method", ["baseline", "ml3", "adalfl"])
def test_the_rates_are_those_of_torch(method, whole):
    """Of the training alone: the initialisation is made at the base optimizer's own rate."""
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.01)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.2, 1.0, 4),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, 0.001),
        ],
        [4],
    )
    expected = {}
    for step in range(1, 15):
        expected[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    found = base_lrs(whole / method)
    assert found == pytest.approx({step: expected[step] for step in found}, rel=1e-12)
    assert len(set(found.values())) > 3
    if method != "baseline":
        before = {r.get("base_lr") for r in rows(whole / method) if r["phase"] != "train"}
        assert before - {None} == {0.01}


def test_a_learned_rate_is_multiplied_by_the_schedule(whole):
    """What is logged last is α after all its meta-steps, times the factor of step 14."""
    state = sealed.load(whole / "meta_lr" / "checkpoint.pt")["state"]
    x = state["learner"]["adaptation"]["descent"]["x"]
    factor = 0.1 + 0.9 * (1 + math.cos(math.pi * 9 / 10)) / 2
    assert base_lrs(whole / "meta_lr")[14] == pytest.approx(math.exp(x) * factor, rel=1e-9)
    assert math.exp(x) != pytest.approx(0.01, rel=1e-3)


def test_a_plateau_goes_by_the_validation_metric(tmp_path):
    """At a rate of 0 nothing improves: each evaluation after the first one counts."""
    plateau = ("Runner.schedule = @schedules.plateau", "schedules.plateau.patience = 0",
               "Runner.evaluate_every = 3", "Runner.log_every = 1",
               "base_optimizers.sgd.lr = 1e-12")  # fmt: skip
    assert train(tmp_path / "run", "baseline", plateau) == 0
    found = [rate / 1e-12 for _, rate in sorted(base_lrs(tmp_path / "run").items())]
    assert found == pytest.approx([1] * 6 + [0.1] * 3 + [0.01] * 3 + [0.001] * 2)


OTHER = {
    "plateau": ("schedules.plateau.patience = 0", "schedules.plateau.threshold = 0.5"),
    "chain": (
        "schedules.chain.parts = [@schedules.warm_up, @schedules.constant, @schedules.cosine]",
        "schedules.chain.at = (4, 8)",
    ),
    "one_cycle": (),
    "steps": ("schedules.steps.at = (5, 11)",),
    "exponential": ("Runner.swa = 0.5",),
}


@FULL  # three lives of each
@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("method", METHODS)
def test_other_schedules_resume_bit_for_bit(name, method, tmp_path):
    asked = [f"Runner.schedule = @schedules.{name}", *OTHER[name], "Runner.clip_value = 0.1"]
    assert train(tmp_path / "whole", method, asked) == 0
    for moment in (3, 10):
        with killed_when(lambda state, moment=moment: state.steps == moment):
            train(tmp_path / "run", method, asked, resume=True)
    assert train(tmp_path / "run", method, asked, resume=True) == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    assert len(set(base_lrs(tmp_path / "run").values())) > 1


def test_several_seeds_at_once_are_those_alone(whole, tmp_path):
    """With a schedule and micro-batches; clipping and a plateau are one seed's alone."""
    extra = (*SCHEDULED, "Runner.micro_batches = 2")
    for seed in ((0, 1), 1):
        assert train(tmp_path / f"{seed}", "baseline", extra, seed=seed) == 0
    folders = (tmp_path / "(0, 1)" / "seed1", tmp_path / "1")
    together, alone = ([{**r, "phase": 0, "split": 0} for r in rows(f)] for f in folders)
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("binding", "several", "message"),
    [
        ("Runner.epochs = 2", False, "Runner.steps = 1000: give None beside Runner.epochs"),
        ("Runner.clip_value = 1", False, "Runner.clip_value = 1: give None beside Runner.clip_no"),
        (
            "Runner.checkpointed = ['layer*']",
            False,
            "checkpointed = ('layer*',): give patterns of the backbone's modules · known: 0, 1",
        ),
        ("Runner.patience = 3", False, "Runner.patience = 3: give Runner.keep_best beside it, as"),
        ("Runner.clip_norm = 1", True, "a stack takes no gradient_transform: a norm would be that"),
        ("Runner.schedule = @schedules.plateau", True, "schedules.plateau goes by each seed's own"),
        ("Runner.schedule = @schedules.chain", False, "schedules.chain.parts is not set: add it"),
    ],
)
def test_what_does_not_go_together_is_told_in_a_line(binding, several, message, refused):
    given = [f"--gin_param={binding}", *(["--seed=0", "--seed=1"] if several else [])]
    if "clip_value" in binding:
        given.append("--gin_param=Runner.clip_norm = 1")
    assert message in refused(*given)


def test_epochs_are_counted_in_steps():
    """1293 training examples of 1797, in steps of two batches of 100 each: 7 an epoch."""
    bindings = ["Runner.steps = None", "Runner.epochs = 3", "tasks.digits.batch_size = 100",
                "Runner.micro_batches = 2"]  # fmt: skip
    plan = config.load(["tasks/digits_mlp.gin", "methods/baseline.gin"], bindings).build()
    data = plan.load_data(Path(), 0)
    assert (len(data.splits["train"][1]), plan.steps_on(data)) == (1293, 21)


parse_arguments = tool("train").parse_arguments
TABLE = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| `(\w+)` \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("gin", "library"), [(row[1], row[2]) for row in TABLE],
                         ids=[row[0].split(":")[0] for row in TABLE])  # fmt: skip
def test_the_table_of_the_page_holds(gin, library):
    """Its gin lines load together, and all is read; its libraries are there."""
    lines = re.findall(r"`([^`]+)`", gin)
    flags = [line for line in lines if line.startswith("--")]
    assert parse_arguments(flags)
    bindings = [line for line in lines if line.startswith(("Runner.", "schedules."))]
    bindings += [line for line in lines if line.startswith(("descents.", "meta_optimizers."))]
    assert bindings or flags
    parsed = config.load(["tasks/digits_mlp.gin", "methods/adalfl.gin"], bindings)
    assert parsed.unread == ()
    parsed.build()
    for path in re.findall(r"`([\w.]+)`", library):
        assert pkgutil.resolve_name(path)


def test_the_tests_that_the_table_names_are_there():
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(TABLE) > 7
    assert [row[3] for row in TABLE if f"def {row[3]}(" not in code] == []
