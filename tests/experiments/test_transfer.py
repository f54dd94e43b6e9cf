"""Transfer: learned losses train other models, in runs that are kept."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch

import metaloss
from metaloss import load_loss
from metaloss.errors import InputError, RunFolderError
from metaloss.experiments import transfer
from metaloss.representations.saved.trajectory import flat
from metaloss.runs.metrics import read_metrics
from tests.helpers import FORMAT_1

TASK = ("--gin_file=tasks/digits_mlp.gin", "--gin_param=backbones.mlp.hidden = (4,)")
LOSS = f"--gin_param=LOSS = {str(FORMAT_1)!r}"


@pytest.fixture
def run(command):
    return partial(command, "transfer")


def phi_of(folder, step):
    return flat(load_loss(folder).at(step).representation)


# --- the modes as runs ---


def test_a_frozen_loss_trains_as_plain_training_on_it_does(train, tmp_path):
    """θ after 5 steps, bit for bit that of a loop that knows nothing but the loaded loss."""
    code, stderr = train(
        *TASK, "--gin_file=transfer/frozen.gin", LOSS, "--gin_param=Runner.steps = 5",
        f"--output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, stderr
    trained = metaloss.load_model(tmp_path / "run")
    data = trained.data
    from metaloss.machine import seeding

    with seeding.drawing_from(seeding.stream(0, "theta")):
        model = trained.plan.backbone(input_shape=data.input_shape, outputs=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss, stream = load_loss(FORMAT_1), seeding.stream(0, "train")
    for _ in range(5):
        inputs, labels = data.draw("train", 128, stream)
        optimizer.zero_grad()
        loss(model(inputs), labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert value.equal(trained.model.state_dict()[name]), name
    assert phi_of(tmp_path / "run", 0).equal(phi_of(tmp_path / "run", 5))


@pytest.mark.parametrize(
    ("over", "expected"), [(None, [0, 1, 1, 1, 4, 4]), (5, [0, 4, 4, 4, 4, 20])]
)
def test_a_replayed_loss_is_that_of_each_step(train, tmp_path, over, expected):
    code, stderr = train(
        *TASK, "--gin_file=transfer/schedule.gin", LOSS, "--gin_param=Runner.steps = 5",
        f"--gin_param=meta_optimizers.replay.over = {over}", "--gin_param=Runner.samples = 5",
        f"--output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, stderr
    for step, recorded in enumerate(expected):
        assert phi_of(tmp_path / "run", step).equal(phi_of(FORMAT_1, recorded))


def test_a_replay_that_was_stopped_goes_on_bit_for_bit(train, tmp_path, monkeypatch):
    from metaloss.runs.run import Run

    arguments = (
        *TASK, "--gin_file=transfer/schedule.gin", LOSS, "--gin_param=Runner.steps = 8",
        "--gin_param=meta_optimizers.replay.over = 8", "--gin_param=Runner.log_every = 1",
    )  # fmt: skip
    assert train(*arguments, f"--output_dir={tmp_path / 'whole'}")[0] == 0
    after_step = Run._record

    def stop_at_3(self, phase, step, last, result):
        self.stop = step == 3
        after_step(self, phase, step, last, result)

    monkeypatch.setattr(Run, "_record", stop_at_3)
    assert train(*arguments, f"--output_dir={tmp_path / 'parts'}")[0] == 143
    monkeypatch.undo()
    assert train("--resume", f"--output_dir={tmp_path / 'parts'}")[0] == 0
    whole, parts = (
        [row | {"seconds": 0} for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_adapt_goes_on_learning(train, tmp_path):
    code, stderr = train(
        *TASK, "--gin_file=transfer/adapt.gin", LOSS, "--gin_param=Runner.steps = 3",
        "--gin_param=representations.pretrained.step = 5", f"--output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, stderr
    assert phi_of(tmp_path / "run", 0).equal(phi_of(FORMAT_1, 4))
    assert not phi_of(tmp_path / "run", 3).equal(phi_of(FORMAT_1, 4))


def test_what_does_not_fit_is_one_line(refused, tmp_path):
    files = ("tasks/digits_mlp.gin", "transfer/schedule.gin")
    message = refused(
        LOSS, "--gin_param=Runner.representation = @representations.nn()", files=files
    )
    assert message.startswith(
        f"replay.path: {FORMAT_1} recorded 24 numbers φ, and the run's loss has 1720: give it "
        "Runner.representation = @representations.pretrained()"
    )
    message = refused(LOSS, "--gin_param=Runner.representation = None", files=files)
    assert "recorded 24 numbers φ, and the run's loss has 0" in message
    message = refused("--gin_param=LOSS = 'nowhere'", files=files)
    assert message.startswith("there is no learned loss in nowhere: no config.json, nor loss/")
    message = refused(LOSS, "--gin_param=representations.pretrained.step = 21", files=files)
    assert message.startswith("step 21 is not in what was recorded: steps 0 to 20, 4 of them · in ")


# --- the tool ---


def test_a_loss_is_transferred_and_compared(run, tmp_path):
    arguments = (
        FORMAT_1, *TASK, "--gin_param=Runner.steps = 3", "--mode=frozen", "--mode=schedule",
        "--mode=adapt", "--seed=0", "--seed=2", f"--output_dir={tmp_path}",
    )  # fmt: skip
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    methods = ("baseline", "frozen", "schedule", "adapt")
    results = {
        method: {
            seed: json.loads((tmp_path / method / f"seed{seed}" / "result.json").read_text())
            for seed in (0, 2)
        }
        for method in methods
    }
    assert all(r["method"] == m for m, runs in results.items() for r in runs.values())
    # Stretched to the new training: its end is the recording's.
    assert phi_of(tmp_path / "schedule/seed0", 3).equal(phi_of(FORMAT_1, 20))
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert (written["task"], written["backbone"], written["steps"]) == ("digits", "mlp", 3)
    for method in methods:
        found = written["methods"][method]
        tests = [results[method][seed]["test"] for seed in (0, 2)]
        assert list(found["test"].values()) == tests
        assert found["mean"] == pytest.approx(sum(tests) / 2)
        if method != "baseline":
            base = [results["baseline"][seed]["test"] for seed in (0, 2)]
            assert found["minus_baseline"] == pytest.approx((sum(tests) - sum(base)) / 2)
    table = (tmp_path / "transfer.md").read_text()
    assert table in stdout
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == list(methods)
    assert "frozen: nn, digits + mlp, adalfl, seed 0, step 20; left as it is" in table

    # Again, with a seed more: what is there is kept, and the source is not needed as it was.
    before = {path: path.read_bytes() for path in tmp_path.glob("*/seed*/result.json")}
    code, stdout, _ = run(*arguments, "--seed=1")
    assert code == 0 and stdout.count("this run has ended already") == 8
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.glob("*/seed*/result.json"))) == 12


def test_a_stopped_run_stops_the_others_and_goes_on(run, tmp_path, monkeypatch):
    from metaloss.runs import launch

    arguments = (
        FORMAT_1,
        *TASK,
        "--gin_param=Runner.steps = 2",
        "--seed=0",
        f"--output_dir={tmp_path}",
    )
    with monkeypatch.context() as patch:
        patch.setattr(launch, "train", lambda **_: 143)
        assert run(*arguments)[0] == 143
    assert not (tmp_path / "transfer.md").exists()
    assert run(*arguments)[0] == 0
    assert (tmp_path / "transfer.md").exists()


def test_a_diverged_run_is_a_result(run, tmp_path):
    arguments = (
        FORMAT_1, *TASK, "--gin_param=Runner.steps = 2", "--seed=0", f"--output_dir={tmp_path}",
    )  # fmt: skip
    assert run(*arguments)[0] == 0
    path = tmp_path / "frozen/seed0/result.json"
    ended = {**json.loads(path.read_text()), "status": "diverged", "test": None}
    path.write_text(json.dumps(ended))
    code, stdout, _ = run(*arguments)
    assert code == 0
    written = json.loads((tmp_path / "transfer.json").read_text())["methods"]["frozen"]
    assert written["status"] == {"0": "diverged"} and written["mean"] is None
    row = next(line for line in stdout.splitlines() if line.startswith("| frozen"))
    assert "| diverged |" in row


def test_bad_input_is_one_line(run, tmp_path):
    out = f"--output_dir={tmp_path / 'out'}"

    def error(*arguments):
        code, _, stderr = run(*arguments, out)
        assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return stderr.removeprefix("error: ").strip()

    assert error("nowhere", *TASK).startswith("there is no learned loss in nowhere")
    assert error(FORMAT_1, *TASK, "--mode=frosen") == (
        "no mode 'frosen'; did you mean 'frozen'? · there are: frozen, schedule, adapt"
    )
    assert error(FORMAT_1, *TASK, "--step=30").startswith("step 30 is not in what was recorded")
    assert error(FORMAT_1, *TASK, "--step=3", "--mode=schedule") == (
        "--step: a schedule goes through all recorded steps"
    )
    assert error(FORMAT_1).startswith("Runner.task is not set: add it to a gin file")
    metaloss.LearnedLoss(metaloss.REPRESENTATIONS["nn"]()).save_pretrained(tmp_path / "alone")
    assert error(tmp_path / "alone", *TASK, "--mode=schedule") == (
        "a schedule: nothing was recorded of how the loss changed"
    )


def test_a_folder_keeps_one_loss(tmp_path):
    shutil.copytree(FORMAT_1, tmp_path / "source")
    loss = load_loss(tmp_path / "source")
    transfer.keep(loss, tmp_path / "loss")
    transfer.keep(load_loss(FORMAT_1), tmp_path / "loss")  # the same
    with torch.no_grad():
        next(loss.parameters()).add_(1)
    message = "loss keeps another loss, which the runs beside it are of: give another --output_dir"
    with pytest.raises(RunFolderError, match=message):
        transfer.keep(loss, tmp_path / "loss")
    assert isinstance(RunFolderError(""), InputError)
