"""Runs: the folder they leave, resuming bit for bit, equal starts, endings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metaloss import config, load_model
from metaloss.config.configuration import Config
from metaloss.errors import InputError
from metaloss.representations.saved.learned_loss import load_loss
from metaloss.runs import launch
from metaloss.runs.run import Run
from metaloss.runs.runner import STREAMS, built
from metaloss.runs.state import State
from tests.helpers import (
    METHODS,
    QUICK,
    ROOT,
    Killed,
    assert_same_state,
    killed_when,
    rows,
    thinned,
    train,
)


@pytest.mark.pictures
@pytest.mark.parametrize(
    "method", thinned(((name,) for name in METHODS), keep=lambda name: name != "ml3")
)
def test_a_run_leaves_its_folder(method, tmp_path, capsys):
    assert train(tmp_path / "run", method) == 0
    folder = tmp_path / "run"
    assert "test error_rate" in capsys.readouterr().out
    result = json.loads((folder / "result.json").read_text())
    expected = {
        "task": "digits", "backbone": "mlp", "method": method, "seed": 0, "steps": 14,
        "metric": "error_rate", "status": "finished",
    }  # fmt: skip
    assert expected.items() <= result.items()
    assert 0 <= result["test"] <= 1 and result["seconds"] > 0 and result["peak_memory_bytes"] > 0
    names = {path.name for path in folder.iterdir()}
    assert {"command.txt", "config.gin", "meta.json", "metrics.jsonl", "checkpoint.pt"} <= names
    assert (folder / "figures" / "learning_curve.png").stat().st_size > 1000
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["seed"] == 0 and "torch" in meta["versions"]
    assert meta["threads"] == torch.get_num_threads()
    written = rows(folder)
    assert [row["step"] for row in written if row.get("split") == "valid"] == [5, 10, 14]
    assert [r["step"] for r in written if r["phase"] == "train" and "learned_loss" in r] == [
        3, 6, 9, 12, 14,
    ]  # fmt: skip
    if method in ("ml3", "adalfl"):
        loss = load_loss(folder)
        assert loss(torch.randn(4, 10), torch.randint(10, (4,))).ndim == 0
        assert (folder / "figures" / "loss.png").stat().st_size > 1000


def test_equal_seeds_equal_runs_and_every_method_starts_equal(tmp_path, monkeypatch):
    starts = {}
    initialize = Run._begin_training

    def remember(self):
        state = self.state
        theta = torch.cat([p.detach().flatten() for p in state.model.parameters()])
        inputs, labels = state.data.splits["train"]
        starts[self.plan.method] = (theta, inputs, labels, state._streams["train"].get_state())
        return initialize(self)

    monkeypatch.setattr(Run, "_begin_training", remember)
    for method in METHODS:
        assert train(tmp_path / method, method) == 0
    for method, start in starts.items():
        for a, b in zip(start, starts["baseline"], strict=True):
            assert a.equal(b), method
    train(tmp_path / "again")
    assert rows(tmp_path / "again") == rows(tmp_path / "adalfl")
    train(tmp_path / "other", seed=1)
    assert rows(tmp_path / "other") != rows(tmp_path / "adalfl")


def drawn(seed, seed_of=None):
    """What each stream of a run decides, before its first step."""
    bindings = ["Runner.select_fraction = 0.5", f"Runner.seed_of = {seed_of}"]
    parsed = config.load(
        ["tasks/digits_mlp.gin", "methods/adalfl.gin"], [*QUICK, *METHODS["adalfl"], *bindings]
    )
    plan = built(parsed, seed)
    state = State(plan, seed, torch.device("cpu"), Path())
    found = {name: stream.get_state() for name, stream in state._streams.items()}
    return found | {
        "phi": torch.cat([p.detach().flatten() for p in plan.representation.parameters()]),
        "theta": torch.cat([p.detach().flatten() for p in state.model.parameters()]),
        "split": state.data.splits["train"][0],
        "select": state.data.splits["select"][0],
        "global": torch.get_rng_state(),
        "precision": plan.stream(seed, "precision").get_state(),
    }


@pytest.mark.parametrize(
    "name", thinned(((name,) for name in STREAMS), keep=lambda name: name in ("phi", "split"))
)
def test_a_stream_with_a_seed_of_its_own_is_alone_with_it(name):
    own, other, mixed = drawn(0), drawn(1), drawn(0, {name: 1})
    assert own.keys() == {*STREAMS}
    moved = {stream for stream in STREAMS if not mixed[stream].equal(own[stream])}
    assert moved == ({"split", "select"} if name == "split" else {name})  # one is part of the other
    assert name == "select" or mixed[name].equal(other[name])


def test_all_streams_with_another_seed_are_the_run_of_that_seed(tmp_path):
    """Nothing that is random is outside of the named streams; resumed, evaluated and told too."""
    extra = ["Runner.select_fraction = 0.5"]
    train(tmp_path / "other", extra=extra, seed=1)
    extra.append(f"Runner.seed_of = {dict.fromkeys(STREAMS, 1)}")
    train(tmp_path / "whole", extra=extra)
    with killed_when(lambda state: state.steps == 6):
        train(tmp_path / "killed", extra=extra)
    assert train(tmp_path / "killed", extra=extra, resume=True) == 0
    for name in ("whole", "killed"):
        assert rows(tmp_path / name) == rows(tmp_path / "other")
        assert json.loads((tmp_path / name / "result.json").read_text())["seed"] == 0
        assert load_model(tmp_path / name).evaluate("valid") == (
            load_model(tmp_path / "other").evaluate("valid")
        )


def test_a_stream_that_is_not_there():
    with pytest.raises(InputError) as caught:
        drawn(0, {"batches": 1})
    assert caught.value.message == (
        "Runner.seed_of = {'batches': 1}: give streams among phi, theta, split, select, train, "
        "objective, mix, global, precision, init_theta, init_train, init_objective, init_mix"
    )


#: A loss with a state of its own beside φ.
CONDITIONED = ("Runner.representation = @representations.step_conditioned()",)
#: A step that is open when a run dies is judged when it goes on.
NEXT = (
    "meta_optimizers.online_one_step.objective = 'next'",
    "meta_optimizers.online_one_step.every = 1",
)


@pytest.mark.parametrize(
    ("method", "extra"),
    [("adalfl", ()), ("meta_lr", ()), ("adalfl", CONDITIONED), ("adalfl", NEXT)],
)
def test_dead_at_any_step_and_resumed_is_the_run_left_alone(method, extra, tmp_path, monkeypatch):
    """Dies again and again: after a step, or when its checkpoint was due; resumes each time."""
    train(tmp_path / "whole", method, extra)
    after_step, save = Run._record, Run._save_checkpoint

    for moment in (2, 9, 11, 15, 17, 20):  # steps of both phases together

        def die_after_step(self, phase, step, *rest, moment=moment):
            after_step(self, phase, step, *rest)
            if self.state.init_steps + self.state.steps == moment:
                raise Killed

        def die_before_checkpoint(self, moment=moment):
            if self.state.init_steps + self.state.steps == moment:
                raise Killed
            save(self)

        monkeypatch.setattr(Run, "_record", die_after_step)
        monkeypatch.setattr(Run, "_save_checkpoint", die_before_checkpoint)
        with pytest.raises(Killed):
            train(tmp_path / "killed", method, extra, resume=True)
    monkeypatch.undo()
    assert train(tmp_path / "killed", method, extra, resume=True) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


def test_augmented_batches_resume_bit_for_bit(tmp_path, data_dir):
    extra = ("Runner.task = @tasks.cifar10()", "tasks.cifar10.batch_size = 8")
    options = {"extra": extra, "data_dir": data_dir}
    assert train(tmp_path / "whole", **options) == 0
    with killed_when(lambda state: state.steps == 7):
        train(tmp_path / "killed", **options)
    assert train(tmp_path / "killed", resume=True, **options) == 0
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.full
def test_killed_for_real_and_resumed(tmp_path):
    """SIGKILL while it trains; the process that resumes ends with the same numbers."""
    steps = ("Runner.steps = 700", "Runner.checkpoint_every = 50", "Runner.evaluate_every = 400")
    train(tmp_path / "whole", extra=steps)
    command = [
        sys.executable, "-W", "ignore", str(ROOT / "tools" / "train.py"),
        "--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl.gin", "--threads=1",
        *(f"--gin_param={p}" for p in [*QUICK, *METHODS["adalfl"], *steps]),
        f"--output_dir={tmp_path / 'killed'}", "--device=cpu", "--resume",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.stat().st_size > 5000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    train(tmp_path / "killed", extra=steps, resume=True)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "killed", tmp_path / "whole")


def test_sigterm_saves_and_stops(tmp_path, monkeypatch):
    train(tmp_path / "whole")
    after_step = Run._record

    def terminate_at_step_7(self, phase, step, *rest):
        if phase == "train" and step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        after_step(self, phase, step, *rest)

    monkeypatch.setattr(Run, "_record", terminate_at_step_7)
    assert train(tmp_path / "stopped") == 128 + signal.SIGTERM
    result = json.loads((tmp_path / "stopped" / "result.json").read_text())
    assert (result["status"], result["steps"], result["test"]) == ("stopped", 7, None)
    monkeypatch.undo()
    assert train(tmp_path / "stopped", resume=True) == 0
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")


def test_a_start_builds_each_run_once(tmp_path, monkeypatch):
    made, build = [], Config.build

    def noting(self):
        made.append(build(self))
        return made[-1]

    monkeypatch.setattr(Config, "build", noting)
    files = ["tasks/digits_mlp.gin", "methods/adalfl.gin"]
    _, planned = launch.plan(launch.Flags(gin_file=files, seed=[3, 4], output_dir=str(tmp_path)))
    assert [one.runner for one in planned] == made


def test_resume_needs_no_more_than_the_folder(tmp_path, monkeypatch):
    """Configuration and seed are the run's own; a finished run is told, not made again."""
    train(tmp_path / "run", seed=3)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert launch.train(output_dir=str(tmp_path / "run"), resume=True, device="cpu") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "run" / "result.json").unlink()
    assert launch.train(output_dir=str(tmp_path / "run"), resume=True, device="cpu") == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["seed"] == 3


@pytest.mark.parametrize("evaluate_every", [1, 100])  # null in its rows, or no row at all
@pytest.mark.pictures
def test_a_diverged_run_says_so(tmp_path, evaluate_every):
    extra = ("base_optimizers.sgd.lr = 1e30", f"Runner.evaluate_every = {evaluate_every}")
    assert train(tmp_path / "run", "baseline", extra=extra) == 3
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["test"]) == ("diverged", None)
    assert (tmp_path / "run" / "figures" / "learning_curve.png").is_file()
    assert train(tmp_path / "run", "baseline", extra=extra, resume=True) == 3
