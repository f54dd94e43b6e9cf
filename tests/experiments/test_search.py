"""Searches by Optuna: what is tried, when a run is left, and what a kill loses."""

from __future__ import annotations

import json

import pytest

from metaloss.errors import ArgumentError, InputError
from metaloss.experiments.launchers import LAUNCHERS
from metaloss.experiments.sweeps import search
from metaloss.experiments.sweeps.search import Search, carry_out, lines
from tests.helpers import tool
from tests.small_runs import write_run

FILES = ["tasks/digits_mlp.gin", "methods/baseline.gin"]
RATE = "base_optimizers.sgd.lr"


class Killed(BaseException):
    pass


def error(bindings) -> float:
    """Of a run: least at a rate of .1."""
    return abs(float(bindings[-1].partition(" = ")[2]) - 0.1)


class Runs:
    """In place of a launcher's: each run takes nine seconds, and has an error from its rate."""

    def __init__(self, folder, dies_at=None):
        self.folder, self.dies_at, self.calls = folder, dies_at, []

    def __call__(self, cells, limit):
        for cell in cells:
            self.calls.append((cell.name, limit))
            if len(self.calls) == self.dies_at:
                raise Killed
            done = limit is None or limit >= 9
            step, seconds = (9, 9.0) if done else (int(limit), limit)
            row = {"phase": "train", "step": step, "split": "valid"}
            rows = [{**row, "error_rate": error(cell.bindings)}]
            folder = self.folder / cell.name
            if folder.is_dir():
                for path in sorted(folder.iterdir()):
                    path.unlink()
                folder.rmdir()
            status = "finished" if done else "stopped"
            write_run(folder, FILES, cell.bindings, 0, 0.5, status, seconds, rows)


def asked(**other) -> Search:
    """A search for the rate, two runs at a time."""
    space = {RATE: (0.001, 1.0, "log")}
    launcher = LAUNCHERS["local"](parallel=2)
    return Search(**{"files": FILES, "space": space, "trials": 6, "launcher": launcher, **other})


def test_it_finds_the_best_and_says_what_was_tried(tmp_path):
    runs, said = Runs(tmp_path), []
    found = carry_out(asked(), tmp_path, runs, said.append)
    assert len(runs.calls) == len(found) == len(said) == 6
    assert [one.value for one in found] == sorted(one.value for one in found)
    assert found[0].value == min(error(one.bindings) for one in found)
    assert all(limit is None for _, limit in runs.calls)
    told = list(lines(found))
    assert told[-3:] == [
        "# 6 trials, 6 of them whole; 54 s of runs in all",
        "# the best of them:",
        found[0].bindings[0],
    ]
    assert said[-1].startswith("[6/6] ")


def test_runs_that_are_behind_are_left_and_cost_less(tmp_path):
    runs = Runs(tmp_path)
    found = carry_out(asked(trials=9, first_seconds=1.0), tmp_path, runs, lambda line: None)
    status = [one.status for one in found]
    assert {*status} == {"finished", "pruned"}
    assert sum(one.seconds for one in found) < 9 * 9 * 2 / 3
    for one in found:
        rungs = [limit for name, limit in runs.calls if name in names(tmp_path, one)]
        whole = [1.0, 3.0, 9.0]
        assert rungs == whole if one.status == "finished" else rungs == whole[: len(rungs)]
    best = min(found, key=lambda one: one.value)
    assert best.status == "finished"


def names(folder, one) -> list[str]:
    """Of the run folders of a trial."""
    return [
        str(path.parent.relative_to(folder))
        for path in folder.glob("*/*/seed0/config.gin")
        if one.bindings[-1] in path.read_text()
    ]


@pytest.mark.parametrize("dies_at", [pytest.param(1, marks=pytest.mark.full), 4])
def test_after_a_kill_it_goes_on_with_the_runs_that_had_begun(dies_at, tmp_path):
    first = Runs(tmp_path, dies_at)
    with pytest.raises(Killed):
        carry_out(asked(trials=6), tmp_path, first, lambda line: None)
    second = Runs(tmp_path)
    found = carry_out(asked(trials=6), tmp_path, second, lambda line: None)
    assert len(found) == 6
    interrupted = first.calls[-1][0]
    assert interrupted in [name for name, _ in second.calls]
    assert len({name for name, _ in first.calls + second.calls}) == 6
    again = Runs(tmp_path)
    assert carry_out(asked(trials=6), tmp_path, again, lambda line: None) == found
    assert not again.calls


def test_a_budget_of_seconds_ends_it(tmp_path):
    found = carry_out(asked(seconds=30.0), tmp_path, Runs(tmp_path), lambda line: None)
    assert len(found) == 4  # two at a time, nine seconds each


def test_what_cannot_be_looked_for_is_refused(tmp_path):
    for place in ((1,), (2, 1), (0.0, 1.0, "log"), (1, 2, "logarithm"), [], 3):
        with pytest.raises(ArgumentError, match="space"):
            asked(space={RATE: place})
    with pytest.raises(ArgumentError, match="split"):
        asked(split="test")
    with pytest.raises(InputError, match="no evaluation on 'select': .* Runner.select_fraction"):
        carry_out(asked(split="select"), tmp_path, Runs(tmp_path), lambda line: None)


def test_the_shipped_search_is_one():
    assert {*search.load("search/digits.gin").space} >= {RATE}


@pytest.mark.full  # processes that train, a minute
def test_a_real_search(tmp_path, capsys):
    spec = tmp_path / "own.gin"
    spec.write_text(
        f"Search.files = {FILES}\n"
        f"Search.space = {{'{RATE}': (0.001, 0.3, 'log')}}\n"
        "Search.bindings = ['Runner.steps = 40', 'Runner.evaluate_every = 20']\n"
        "Search.trials = 2\n"
    )
    sweep, runs = tool("sweep"), tmp_path / "runs"
    assert sweep.main(["search", str(spec), f"--output_dir={runs}", "--device=cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith(f"{RATE} = ") and "2 trials, 2 of them whole" in out[-3]
    results = [json.loads(path.read_text()) for path in runs.glob("*/*/seed0/result.json")]
    assert [result["status"] for result in results] == ["finished"] * 2
