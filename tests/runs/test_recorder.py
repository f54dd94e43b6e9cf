"""One's own loop in a run folder: what reports, figures and TensorBoard read of it."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metaloss
from metaloss.errors import ArgumentError, HealthWarning, InputError, RunFolderError
from metaloss.experiments import records
from metaloss.experiments.reports.publish import publish
from metaloss.runs import pictures
from tests.helpers import make_batches, rows, tool

TOLD = {"task": "stripes", "model": "linear", "settings": {"lr": 0.1}, "log_every": 2}


def loop(folder, method="adalfl", seed=0, steps=range(6), saved=None, stop=None):
    """A loop as people write it; a stop leaves it as a kill would, with a checkpoint at step 4."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = None if method == "baseline" else metaloss.REPRESENTATIONS["taylor"]()
    learner = metaloss.AdaLFL(model, optimizer, loss, meta_lr=None if loss is None else 1e-2)
    train, valid = make_batches(6, 8, 4, seed=seed), make_batches(2, 16, 4, seed=seed + 9)
    record = metaloss.Recorder(folder, learner, train[0], method=method, seed=seed, **TOLD)
    everything = (model, optimizer, learner, record)
    if saved is not None:
        for part, state in zip(everything, saved, strict=True):
            part.load_state_dict(state)

    def error(batches):
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return (model(x).argmax(1) != y).float().mean()

    with record:
        for step in steps:
            if step % 3 == 0:
                record.evaluation("valid", loss=0.5, error_rate=error(valid))
            record.step(learner.step(train[step], valid[step % 2]))
            if step == 3:
                saved = [json_or_state(part.state_dict()) for part in everything]
            if step == stop:
                return saved
        record.finish(loss=0.25, error_rate=error(valid))
    return saved


def json_or_state(state):
    """A copy that later steps do not change."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, state)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two seeds of a baseline and of a learned loss."""
    root = tmp_path_factory.mktemp("own")
    for method, seed in itertools.product(("baseline", "adalfl"), range(2)):
        loop(root / method / f"seed{seed}", method, seed)
    return root


def test_its_folder_is_a_run_for_everybody_who_reads_runs(recorded, tmp_path):
    found = records.read([recorded])
    assert not found.problems
    titles = {run.title for run in found.runs}
    assert "stripes + linear, adalfl, seed 1" in titles and len(titles) == 4
    assert {run.status for run in found.runs} == {"finished"}
    publish([str(recorded)], None, tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    assert "error rate" in report and "adalfl - baseline" in report
    assert "assumed" not in report and "(2)" in report  # seeds are averaged
    compare, run = tool("compare"), recorded / "adalfl"
    arguments = [
        str(run / "seed0"),
        str(recorded / "baseline/seed0"),
        f"--output={tmp_path}/a.html",
    ]
    assert compare.main(arguments) == 0
    assert "own_loop.meta_lr" in (tmp_path / "a.html").read_text()


def test_rows_are_those_of_runs(recorded):
    told = rows(recorded / "adalfl" / "seed1")
    assert [row["step"] for row in told if "learned_loss" in row] == [2, 4, 6]
    assert [row["step"] for row in told if "scale" in row] == [0, 3]
    valid = [(row["step"], row["split"]) for row in told if "split" in row]
    assert valid == [(0, "valid"), (3, "valid"), (6, "test")]
    result = json.loads((recorded / "adalfl" / "seed1" / "result.json").read_text())
    assert (result["task"], result["backbone"], result["steps"]) == ("stripes", "linear", 6)
    assert result["test"] == told[-1]["error_rate"]
    assert sum(result["seconds_by_part"].values()) == pytest.approx(result["seconds"], abs=0.02)
    assert result["seconds_by_part"]["meta"] > 0
    assert not (recorded / "baseline" / "seed1" / "loss").exists()


def test_the_exported_loss_is_the_learned_one_over_the_training(recorded):
    loss = metaloss.load_loss(recorded / "adalfl" / "seed0")
    assert loss.trajectory.steps.tolist() == [0, 3, 6]
    assert loss.provenance["classes"] == 3
    assert not loss.trajectory.phi[0].equal(loss.trajectory.phi[2])


@pytest.mark.full  # drawing takes ten seconds
@pytest.mark.pictures
def test_figures_and_events(tmp_path):
    loop(tmp_path / "run")
    drawn = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn == {*pictures.OF_SHORT_RUNS}
    assert tool("figures").main([str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "figures" / "loss_ribbon.png").is_file()
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_a_loop_that_was_killed_goes_on_with_the_same_rows(tmp_path):
    loop(tmp_path / "whole")
    saved = loop(tmp_path / "killed", stop=4)
    result = records.read([tmp_path / "killed"])
    assert [run.status for run in result.runs] == ["unfinished"]
    with pytest.raises(RunFolderError, match="holds a run already"):
        loop(tmp_path / "killed")
    loop(tmp_path / "killed", steps=range(4, 6), saved=saved)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_dense_outputs_of_mappings(tmp_path):
    """A tagger: the loss is looked at on the tokens that count."""
    torch.manual_seed(0)

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, words):
            return self.head(self.words(words)).movedim(-1, 1)

    model, tags = Tagger(), torch.randint(4, (5, 7))
    tags[:, 5:] = -100
    batch = {"words": torch.randint(9, (5, 7))}, tags
    learner = metaloss.AdaLFL(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        metaloss.REPRESENTATIONS["taylor"](),
        link=metaloss.links.Dense(),
    )
    told = {"task": "tags", "model": "tagger", "method": "adalfl"}
    with metaloss.Recorder(tmp_path / "run", learner, batch, **told) as record:
        record.step(learner.step(batch, batch))
        record.evaluation("valid", error_rate=0.5)
        record.finish(error_rate=0.5)
    (row,) = (row for row in rows(tmp_path / "run") if "scale" in row)
    assert -1 <= row["cosine_theta"] <= 1 and row["ratio_theta"] > 0
    assert metaloss.load_loss(tmp_path / "run").provenance["classes"] == 4


def test_trouble_is_a_row_and_still_told(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["taylor"]())
    (batch,) = make_batches(1, 8, 4)
    record = metaloss.Recorder(tmp_path / "run", learner, batch, method="adalfl", **TOLD)
    with record, pytest.warns(HealthWarning, match="no good"):
        learner.tell("no good")
    assert rows(tmp_path / "run")[0]["warning"] == "no good"
    with pytest.warns(HealthWarning, match="later"):
        learner.tell("later")
    assert len(rows(tmp_path / "run")) == 1


def test_what_cannot_be_told_is_refused(tmp_path):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = metaloss.AdaLFL(model, optimizer, None, F.cross_entropy, meta_lr=None)
    (batch,) = make_batches(1, 8, 4)

    def recorder(**other):
        told = {"method": "baseline", **TOLD, **other}
        return metaloss.Recorder(tmp_path / "run", learner, batch, **told)

    with pytest.raises(ArgumentError, match="task"):
        recorder(task="two words")
    with pytest.raises(ArgumentError, match="model"):
        recorder(settings={"model": model})
    with recorder() as record, pytest.raises(InputError, match="error_rate, the metric; .*: loss"):
        record.evaluation("valid", loss=1.0)
    assert not (tmp_path / "run" / "result.json").exists()
