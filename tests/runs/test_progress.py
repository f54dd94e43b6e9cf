"""What a run says: before, while it goes on, and at its end."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from metaloss import config
from metaloss.meta_optimizers import META_OPTIMIZERS
from metaloss.representations import REPRESENTATIONS
from metaloss.runs import forecast, lockstep, progress, words
from metaloss.runs.forecast import Forecast
from metaloss.runs.progress import Progress, speaking
from tests.helpers import make_batches, make_problem, said, train


@pytest.mark.parametrize("method", ["baseline", "adalfl"])
def test_a_run_says_what_it_is_made_of_and_how_it_goes(method, tmp_path, capsys):
    assert train(tmp_path / "run", method, extra=["Runner.evaluate_every = 14"]) == 0
    out, error = capsys.readouterr()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING) "
    assert all(re.match(stamp, line) for line in error.splitlines())
    told = [line.removeprefix("INFO ") for line in said(error)]
    starts = ["device: cpu, ", "data: digits, train ", "model: mlp, 610 parameters; SGD, lr 0.01"]
    starts += ["loss: nn, ", "initialization: 9 meta-steps"] * (method == "adalfl")
    starts += [f"training: {method}, 14 steps", f"folder: {tmp_path / 'run'}"]
    starts += ["scale: ", "initialization 9/9: learned loss "] * (method == "adalfl")
    starts += ["training 14/14, "]
    told = [line for line in told if not line.startswith("WARNING")]
    assert [line[: len(start)] for line, start in zip(told, starts, strict=True)] == starts
    assert re.match(r"training 14/14, [\d.,]+ examples/s: ", told[-1])
    assert re.search(r"valid error rate [01](\.\d{1,3})?(,|$)", told[-1])
    assert ("learned loss" in error) == (method == "adalfl")
    assert re.search(r"test error_rate [01]?\.?\d{1,5} after 14 steps, [\d.]+ s\n$", out)


def test_lines_come_every_ten_seconds_and_say_how_long_is_left(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.LOG, "info", lambda line: lines.append((now[0], line)))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    told = Progress("error_rate", learned=True)
    told.start("initialization", 0, 200, alike=100)
    for step in range(1, 201):
        now[0] += 0.01 if step <= 100 else 1.5
        told.show({"phase": "initialization", "step": step, "learned_loss": 1 / 3, "seconds": 1.0})
        told.step(step)
    times = [0.0, *(at for at, _ in lines)]
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) <= 10
    first, second = lines[0][1], lines[1][1]  # of quick steps nothing is concluded for slow ones
    assert first == "initialization 101/200, 2.5 min left: learned loss 0.333"
    assert second.startswith("initialization 107/200, 2.3 min left")
    assert lines[-1][1] == "initialization 200/200: learned loss 0.333"
    told.start("training", 10, 20, examples=64)
    now[0] += 4.0
    told.step(14)
    assert lines[-1][1] == "training 14/20, 6.0 s left, 64 examples/s"


def test_a_program_with_a_handler_of_its_own_is_left_to_it(capsys):
    logger, records = logging.getLogger("metaloss"), []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    try:
        with speaking():
            progress.LOG.warning("seen")
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == ["seen"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("asked", "made"), [({}, 9), ({"every": 4}, 3), ({"start": 3, "stop": 8, "every": 2}, 3)]
)
def test_meta_steps_are_counted_before_they_are_made(asked, made):
    adaptation = META_OPTIMIZERS["online_one_step"](**asked)
    assert adaptation.meta_steps(9) == made
    linear = make_problem(
        lambda: nn.Linear(4, 3),
        lambda theta: torch.optim.SGD(theta, lr=0.1),
        lambda: REPRESENTATIONS["taylor"](),
    )
    adaptation.attach(linear)
    batch = make_batches(1, 8, 4)[0]
    steps = [adaptation.step(lambda: batch, lambda: batch) for _ in range(9)]
    assert sum(step.due for step in steps) == made


def test_a_dry_run_says_what_the_run_will_cost(tmp_path, monkeypatch, capsys):
    """Of steps that are said to take a second each, and evaluations nothing."""
    monkeypatch.setattr(forecast.time, "perf_counter", iter(range(10**6)).__next__)
    monkeypatch.setattr(lockstep.Run, "evaluation_seconds", lambda self: 0.0)
    assert train(tmp_path / "run", dry_run=True) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    # 9 meta-steps, and 14 steps of which every second has a meta-step.
    assert last.startswith(
        "# expected: 23 s (initialization 9.0 s + training 14 s), 1.6 times the baseline's 14 s; "
    )
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_which_layers_there_are(tmp_path, capsys):
    frozen = ["Runner.frozen_until = {'1.*': 7}"]
    assert train(tmp_path / "run", "baseline", frozen, dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("# parameters:")
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["#", "1", "Linear", "520", "frozen", "at", "the", "start"],
        ["#", "3", "Linear", "90"],
    ]


def test_all_processes_are_timed_by_as_many_steps(monkeypatch):
    """Or one of them would wait for a step that another does not make."""
    others, made = iter([False, False, True]), []
    monkeypatch.setattr(forecast.distributed, "anywhere", lambda flag: flag or next(others))
    assert len(forecast.paced(lambda: made.append(1), torch.device("cpu"))) == len(made) == 2


def test_a_dry_run_prints_a_gin_file(tmp_path, capsys):
    assert train(tmp_path / "run", dry_run=True) == 0
    out, error = capsys.readouterr()
    assert error == ""
    (tmp_path / "again.gin").write_text(out)
    again = config.load([str(tmp_path / "again.gin")])
    assert again.text in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (44.6, "45 s"), (100, "1.7 min"), (4000, "67 min"), (9000, "2.5 h")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_a_forecast_of_a_baseline_has_no_other_baseline():
    assert str(Forecast(0.0, 7200.0, 600.0, None, 2**31)) == (
        "expected: 2.2 h (training 2.0 h + evaluations 10 min); 2.0 GiB of memory"
    )
