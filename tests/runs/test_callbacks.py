"""Callbacks: who is told how a run goes; the trackers' own files are read back."""

from __future__ import annotations

import json
import random
import sys

import pytest

from metaloss import testing
from metaloss.errors import InputError, RunFolderError
from metaloss.machine.files import read_json
from metaloss.runs.callbacks import CALLBACKS, tensorboard
from metaloss.runs.callbacks.base import Callback, Start
from metaloss.runs.callbacks.parts.everyone import Everyone
from metaloss.runs.callbacks.parts.numbers import scalars
from metaloss.runs.callbacks.parts.tracker import Tracker
from metaloss.runs.metrics import read_metrics
from metaloss.testing.callback import ROWS
from tests.helpers import killed_when, train, written_by_wandb

TOLD: list[tuple[str, object]] = []


class Listener(Callback):
    """Notes what it is told, and fails where it is asked to."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.rows = 0

    def note(self, what, content=None):
        if what == self.fails_at:
            raise ValueError(f"{what}\nbroke")
        TOLD.append((what, content))

    def begin(self, start, state):
        self.rows = state.get("rows", 0)
        self.note("begin", (start.rows, dict(start.done), self.rows))

    def after_step(self, row):
        self.rows += 1
        self.note("step", dict(row))

    def after_evaluation(self, row):
        self.rows += 1
        self.note("evaluation", dict(row))

    def after_look(self, look):
        self.note("look", look.step)

    def state_dict(self):
        return {"rows": self.rows}

    def end(self, result):
        self.note("end", dict(result))

    def close(self):
        self.note("close")


@pytest.fixture(autouse=True)
def listener(monkeypatch):
    """Registered for a test; gives what it is told."""
    monkeypatch.setattr(CALLBACKS, "_components", dict(CALLBACKS._components))
    CALLBACKS.register("listener")(Listener)
    TOLD.clear()
    return TOLD


ASKED = "Runner.callbacks = [@callbacks.listener()]"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that tells nobody anything."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert train(folder, extra=("Runner.callbacks = []",)) == 0
    return folder


def without_clock(rows):
    return [{**row, "seconds": None} for row in rows]


def test_it_is_told_each_row_and_changes_no_bit(listener, plain, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, extra=(ASKED,)) == 0
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row for what, row in listener if what in ("step", "evaluation")] == rows
    assert all("split" in row for what, row in listener if what == "evaluation")
    assert listener[0] == ("begin", (0, {"initialization": 0, "train": 0}, 0))
    assert [what for what, _ in listener[-2:]] == ["end", "close"]
    assert listener[-2][1] == read_json(folder / "result.json")
    assert without_clock(rows) == without_clock(read_metrics(plain / "metrics.jsonl"))
    assert not list(folder.glob("events.*")) and not list(plain.glob("events.*"))


def test_it_goes_on_from_what_the_checkpoint_holds(listener, plain, tmp_path):
    folder = tmp_path / "run"
    with killed_when(lambda state: state.steps == 6):  # the checkpoint is at 4
        train(folder, extra=(ASKED,))
    told = [row for what, row in listener if what in ("step", "evaluation")]
    listener.clear()
    assert train(folder, extra=(ASKED,), resume=True) == 0
    _, (kept, done, restored) = listener[0]
    assert done == {"initialization": 9, "train": 4} and kept == restored < len(told)
    again = [row for what, row in listener if what in ("step", "evaluation")]
    assert without_clock(told[:kept] + again) == without_clock(
        read_metrics(plain / "metrics.jsonl")
    )


@pytest.mark.parametrize("fails_at", ["step", "evaluation", "end", "close"])
def test_what_it_raises_costs_the_run_no_more_than_itself(fails_at, tmp_path):
    warned = []
    everyone = Everyone([Listener(fails_at), Listener()], warned.append)
    everyone.begin(Start(tmp_path, "", {}, 0, "mse", {"train": 0}), {"1": {"rows": 7}})
    assert everyone.state_dict() == {"0": {"rows": 0}, "1": {"rows": 7}}
    for _ in range(2):
        everyone.after_step({})
        everyone.after_evaluation({})
    assert everyone.state_dict()["1"] == {"rows": 11}  # the other one goes on
    everyone.end({})
    everyone.close()
    assert warned == [f"goes on without callbacks.listener: ValueError: {fails_at}"]


def test_it_may_not_begin_and_the_folder_may_not_take_more(tmp_path):
    start = Start(tmp_path, "", {}, 0, "mse", {"train": 0})
    with pytest.raises(InputError, match="^callbacks.listener cannot begin: ValueError: begin$"):
        Everyone([Listener("begin")], print).begin(start, {})

    class Full(Callback):
        def after_step(self, row):
            raise RunFolderError("the disk is full")

    everyone = Everyone([Full()], print)
    everyone.begin(start, {})
    with pytest.raises(RunFolderError, match="full"):
        everyone.after_step({})


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_before_the_first_step(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    start = Start(tmp_path, "", {"task": "t", "backbone": "b", "method": "m"}, 0, "mse", {})
    with pytest.raises(
        InputError, match=rf"callbacks.{name} needs {name}: install metaloss\[{name}"
    ):
        CALLBACKS[name]().begin(start, {})


class Service(Tracker):
    """A tracker in memory, which outlives processes."""

    kept: list[tuple[str, dict[str, float]]] = []

    def open(self, start, identity):
        return identity or f"run {random.random()}"

    def tell(self, numbers, phase, row):
        self.kept.append((phase, numbers))

    def warn(self, trouble):
        self.kept.append((trouble, {}))


def test_a_tracker_is_told_each_row_once_however_often_the_run_is_killed(tmp_path):
    CALLBACKS.register("service")(Service)
    rows = [{"phase": "train", "step": i, "seconds": 1.0, "loss": i} for i in range(10)]
    names = {"task": "t", "backbone": "b", "method": "m"}
    identities = set()
    for kept, killed in ((0, 5), (3, 4), (3, 8), (6, 10)):
        service = Service()
        service.begin(Start(tmp_path, "", names, 0, "mse", {"train": kept}, kept), {})
        for row in rows[kept:killed]:
            service.after_step(row)
        identities.add((tmp_path / "service.tracked").read_text().split("\n")[0])
    assert Service.kept == [("", scalars(row)) for row in rows]
    assert len(identities) == 1


def test_tensorboard_keeps_the_contract():
    testing.check_callback(tensorboard.TensorBoard)


def test_the_check_finds_what_breaks_the_contract():
    class Changes(Callback):
        def after_step(self, row):
            row["step"] = 0

    class Holds(Callback):
        def state_dict(self):
            return {"rows": {1, 2}}

    with pytest.raises(testing.ContractError, match="changes the row"):
        testing.check_callback(Changes)
    with pytest.raises(testing.ContractError, match="no plain data"):
        testing.check_callback(Holds)


# --- the services' own files, read back ---


def life(callback, folder):
    """A run that is killed after its 4th row, and goes on from a checkpoint that counts 3."""
    names = {"task": "t", "backbone": "b", "method": "adalfl"}
    for kept, rows in ((0, ROWS[:4]), (3, ROWS[3:])):
        one = callback()
        done = {"initialization": 1, "train": kept}
        one.begin(Start(folder, "Runner.steps = 4\n", names, 5, "error_rate", done, kept), {})
        for row in rows:
            (one.after_evaluation if "split" in row else one.after_step)(row)
        if kept:
            one.end({"status": "finished", "health": "healthy", "select": None, "best_step": None})
        one.close()


#: By tag, what `life` tells: step and number.
EXPECTED = {
    "initialization/train/learned_loss": (1, 0.5),
    "train/learned_loss": (2, 0.25),
    "meta/base_lr": (2, 0.1),
    "valid/error_rate": (2, 0.5),
    "test/error_rate": (4, 0.25),
}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of the packages' own
def test_wandb_offline(tmp_path):
    package = pytest.importorskip("wandb")
    wandb = CALLBACKS["wandb"]
    testing.check_callback(lambda: wandb(mode="offline"))
    life(lambda: wandb(mode="offline", tags=["a"]), tmp_path)
    package.teardown()  # its own process writes the files, and may be behind
    found, ids, config = {}, set(), {}
    for path in sorted(tmp_path.rglob("*.wandb")):
        for record in written_by_wandb(path):
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = items.get("initialization/step", items.get("step"))
            for tag in items.keys() & EXPECTED:
                found.setdefault(tag, []).append((step, items[tag]))
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.run_group, record.run.display_name))
                config |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
    assert found == {tag: [value] for tag, value in EXPECTED.items()}  # each once
    ((_, group, name),) = ids
    assert (group, name) == ("t b adalfl", "t b adalfl seed 5")
    assert config["Runner.steps"] == 4 and config["seed"] == 5


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_mlflow_in_files(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    mlflow = CALLBACKS["mlflow"]
    testing.check_callback(lambda: mlflow(tracking_uri=uri))
    life(lambda: mlflow("mine", uri), tmp_path)

    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    for tag, (step, value) in EXPECTED.items():
        (metric,) = client.get_metric_history(run.info.run_id, tag)
        assert (metric.step, metric.value) == (step, value)
    assert run.info.status == "FINISHED" and run.info.run_name == "t b adalfl seed 5"
    assert run.data.params["Runner.steps"] == "4" and run.data.tags["warning"] == "it fails"


def test_a_profile_is_of_the_steps_between_two_rows(tmp_path):
    extra = ("Runner.callbacks = [@callbacks.profiler()]", "callbacks.profiler.after = 4")
    assert train(tmp_path / "run", "baseline", (*extra, "Runner.log_every = 3")) == 0
    folder = tmp_path / "run" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "steps_6_to_9.pt.trace.json", "steps_6_to_9.txt",
    ]  # fmt: skip
    events = json.loads((folder / "steps_6_to_9.pt.trace.json").read_text())["traceEvents"]
    backward = [event for event in events if event.get("name") == "aten::nll_loss_backward"]
    assert len(backward) == 3  # one a step
    assert "aten::linear" in (folder / "steps_6_to_9.txt").read_text()
