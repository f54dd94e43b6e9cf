"""The run folder: who may write there, resuming, stopping and diverging; nothing is overwritten."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY

from metaloss import checkpoint
from metaloss.run_folder import RunFolder

SMALL = (
    "--gin_file=quickstart.gin",
    "--gin_param=Runner.steps = 6",
    "--gin_param=Runner.checkpoint_every = 2",
    "--gin_param=Runner.log_every = 2",
    "--gin_param=Runner.evaluate_every = 3",
    "--gin_param=meta_optimizers.offline_unrolled.steps = 3",
    "--gin_param=backbones.mlp.hidden = (4,)",
)
FILES = {
    "checkpoint.pt", "command.txt", "config.gin", "figures", "initialization", "loss", "meta.json",
    "metrics.jsonl", "result.json",
}  # fmt: skip


@pytest.fixture
def start(train, tmp_path):
    """Runs a small run; -> its exit code and the last line of standard error."""

    def start(*arguments, files=SMALL, folder=tmp_path / "run"):
        code, stderr = train(*files, f"--output_dir={folder}", *arguments)
        return code, (stderr.splitlines() or [""])[-1]

    start.folder = RunFolder(tmp_path / "run")
    return start


def contents(folder):
    """What a refused start must not change; every start is noted in command.txt."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != "command.txt"}


def without_seconds(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_run_leaves_all_its_files_and_is_never_overwritten(start):
    folder = start.folder
    assert start()[0] == 0
    names = {path.name for path in folder.path.iterdir()}
    assert {name for name in names if not name.startswith("events.")} == FILES
    result = json.loads(folder.result.read_text())
    assert (result["status"], result["steps"], result["init_steps"]) == ("finished", 6, 3)
    before = contents(folder)

    code, line = start()
    assert code == 2
    assert line == (
        f"error: {folder.path} holds a run already (finished, test error_rate {result['test']}): "
        "--resume goes on with it, another --output_dir leaves it alone"
    )
    assert start("--resume")[0] == 0  # it has ended: nothing to do
    assert start("--resume", files=())[0] == 0  # by its own config.gin
    code, line = start("--resume", "--gin_param=Runner.steps = 7")
    assert code == 2
    assert line == (
        f"error: {folder.path} holds a run of another configuration, so --resume cannot go on with "
        "it (- there, + asked): - Runner.steps = 6 · + Runner.steps = 7"
    )
    code, line = start("--resume", "--seed=1")
    assert code == 2
    assert line == (
        f"error: {folder.path} holds a run with seed 0, not 1: give that --seed, or another "
        "--output_dir"
    )
    assert contents(folder) == before


def test_resume_starts_a_new_run_where_there_is_none(start):
    assert start("--resume")[0] == 0
    assert start.folder.result.is_file()


def test_resume_without_a_run_and_without_files_asks_for_files(start):
    path = start.folder.path
    expected = f"error: {path} holds no run to go on with: give --gin_file"
    assert start("--resume", files=()) == (2, expected)
    assert not path.exists()


def test_an_output_folder_that_is_a_file_stays_a_file(start, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    code, line = start(folder=path)
    assert code == 2
    assert line == f"error: {path} cannot be written to: [Errno 17] File exists: '{path}'"
    code, line = start(folder=path / "below")
    assert code == 2
    assert line.startswith(f"error: {path / 'below'} cannot be written to: ")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint.pt", "result.json", "figures"])
def test_files_of_something_else_are_not_touched(start, name):
    start.folder.path.mkdir()
    path = start.folder.path / name
    path.write_text("precious")
    code, line = start()
    assert code == 2
    assert line == (
        f"error: {path} is in the way: there is no config.gin beside it to say which run it "
        "belongs to; give another --output_dir"
    )
    assert list(start.folder.path.iterdir()) == [path]
    assert path.read_text() == "precious"


@pytest.fixture
def killed(start):
    """A run that was killed after its last checkpoint, at step 4 of 6."""

    class Killed(BaseException):
        """As the kernel does it: no handler of ours runs."""

    save, saved = checkpoint.save, []

    def save_then_die(path, state):
        save(path, state)
        saved.append(state["steps"])
        if state["steps"] == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(Killed):
            start()
    assert saved[-1] == 4
    return start


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what the killed run held open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_run_goes_on_bit_for_bit(killed, tmp_path):
    whole = RunFolder(tmp_path / "whole")
    code, line = killed()
    assert (code, "(unfinished)" in line) == (2, True)
    assert killed("--resume", files=())[0] == 0
    assert killed(folder=whole.path)[0] == 0
    assert without_seconds(killed.folder.metrics) == without_seconds(whole.metrics)
    one, two = (checkpoint.load(folder.checkpoint) for folder in (killed.folder, whole))
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name])
    assert (killed.folder.path / "command.txt").read_text().count("\n") == 2


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_stops_the_resume_and_changes_nothing(killed):
    path = killed.folder.checkpoint
    whole = path.read_bytes()
    state = checkpoint.load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        before = contents(killed.folder)
        code, line = killed("--resume")
        assert code == 2
        assert line.startswith(f"error: {path} is no whole checkpoint (")
        assert contents(killed.folder) == before
    checkpoint.save(path, state | {"config": "another"})
    code, line = killed("--resume")
    expected = f"error: {path} is a checkpoint of another configuration; nothing changed"
    assert (code, line) == (2, expected)
    del state["steps"]
    checkpoint.save(path, state)
    code, line = killed("--resume")
    assert code == 2
    assert line.startswith(f"error: {path} is no whole checkpoint (of another version: KeyError")
    path.write_bytes(whole)
    assert killed("--resume")[0] == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_notes_of_a_run_are_named(killed):
    folder = killed.folder
    folder.result.write_text("{")
    code, line = killed("--resume")
    assert code == 2
    assert line.startswith(f"error: {folder.result} cannot be read: Expecting property name")
    folder.result.unlink()
    folder.meta.write_text("[]")
    assert killed("--resume") == (2, f"error: {folder.meta} holds no JSON object")
    folder.config.write_bytes(b"\xff")
    code, line = killed("--resume")
    assert (code, "holds a run of another configuration" in line) == (2, True)


@pytest.mark.parametrize("method", ["baseline", "meta_lr"])
def test_a_diverged_run_has_exit_code_3_and_a_whole_folder(start, method):
    init = ["--gin_param=offline/meta_optimizers.meta_lr.steps = 2"] if method == "meta_lr" else []
    files = [
        "--gin_file=tasks/digits_mlp.gin",
        f"--gin_file=methods/{method}.gin",
        "--gin_param=base_optimizers.sgd.lr = 1e6",
        "--gin_param=Runner.log_every = 10",
        "--gin_param=Runner.steps = 100",
        *init,
    ]
    assert start(files=files)[0] == 3
    result = json.loads(start.folder.result.read_text())
    assert (result["status"], result["test"]) == ("diverged", None)
    assert 0 < result["steps"] < 100
    rows = without_seconds(start.folder.metrics)
    assert rows[-1]["learned_loss"] is None
    assert (start.folder.figures / "learning_curve.png").stat().st_size > 1000
    assert start("--resume", files=files)[0] == 3  # it has ended


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_is_saved_and_goes_on_bit_for_bit(start, tmp_path, number, exit_code):
    save, whole = checkpoint.save, RunFolder(tmp_path / "whole")

    def save_then_stop(path, state):
        save(path, state)
        if state["steps"] == 2:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_stop)
        assert start()[0] == exit_code
    result = json.loads(start.folder.result.read_text())
    assert (result["status"], result["steps"], result["test"]) == ("stopped", 3, None)
    assert start("--resume")[0] == 0
    assert start(folder=whole.path)[0] == 0
    assert without_seconds(start.folder.metrics) == without_seconds(whole.metrics)


def test_sigterm_ends_the_process_with_143(start):
    folder = start.folder
    files = [*SMALL, "--gin_param=Runner.steps = 100000", "--gin_param=Runner.log_every = 50"]
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py"), *files]
    process = subprocess.Popen(
        [*command, f"--output_dir={folder.path}"], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (folder.metrics.is_file() and folder.metrics.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    result = json.loads(folder.result.read_text())
    assert (result["status"], result["test"]) == ("stopped", None)
    state = checkpoint.load(folder.checkpoint)
    assert state["steps"] == result["steps"] < 100000
