"""The run folder: who may write there, and what is refused without touching anything."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from metaloss.machine import sealed
from metaloss.runs.folder import RunFolder
from tests.helpers import ROOT

SMALL = (
    "--gin_file=quickstart.gin",
    "--gin_param=Runner.steps = 6",
    "--gin_param=Runner.checkpoint_every = 2",
    "--gin_param=Runner.log_every = 2",
    "--gin_param=Runner.evaluate_every = 3",
    "--gin_param=meta_optimizers.task_fit.steps = 2",
    "--gin_param=meta_optimizers.offline_unrolled.steps = 1",
    "--gin_param=meta_optimizers.offline_unrolled.scale_steps = 2",
    "--gin_param=backbones.mlp.hidden = (4,)",
)
FILES = {
    ".lock", "checkpoint.previous.pt", "checkpoint.pt", "command.txt", "config.gin", "figures",
    "initialization", "loss", "meta.json", "metrics.jsonl", "model.json", "README.md",
    "result.json", "test_errors.npz", "weights.safetensors",
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
    """What a refused start must not change; every start is noted in command.txt and .lock."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    notes = ("command.txt", ".lock")
    return {path: path.read_bytes() for path in files if path.name not in notes}


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

    save, saved = sealed.save, []

    def save_then_die(path, content):
        save(path, content)
        saved.append(content["state"]["steps"])
        if saved[-1] == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed, "save", save_then_die)
        with pytest.raises(Killed):
            start()
    assert saved[-1] == 4
    return start


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_stops_the_resume_and_changes_nothing(killed):
    path = killed.folder.checkpoint
    sealed.previous(path).unlink()
    whole = path.read_bytes()
    state = sealed.load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        before = contents(killed.folder)
        code, line = killed("--resume")
        assert code == 2
        assert line.startswith(f"error: {path} is no whole checkpoint (")
        assert contents(killed.folder) == before
    sealed.save(path, state | {"config": "another"})
    code, line = killed("--resume")
    expected = f"error: {path} is of another configuration: nothing was changed"
    assert (code, line) == (2, expected)
    del state["state"]["steps"]
    sealed.save(path, state)
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


def test_a_run_of_an_earlier_version_is_not_resumed(killed):
    """Its config.gin has fewer lines than today's, and no other ones; one that has ended has."""
    folder = killed.folder
    lines = folder.config.read_text().splitlines(keepends=True)
    folder.config.write_text("".join(line for line in lines if "Runner.schedule" not in line))
    code, line = killed("--resume")
    assert code == 2
    assert line.startswith(
        f"error: {folder.path} holds an unfinished run of an earlier version, whose config.gin "
        "lacks Runner.schedule = None: --resume of that version goes on with it"
    )
    result = {"task": "digits", "backbone": "mlp", "method": "adalfl", "status": "finished",
              "metric": "error_rate", "test": 0.5, "steps": 6, "init_steps": 3,
              "seconds": 1.0}  # fmt: skip
    folder.result.write_text(json.dumps(result))
    assert killed("--resume")[0] == 0


@pytest.mark.full  # processes that import torch and train
def test_sigterm_ends_the_process_with_143(start):
    folder = start.folder
    files = [*SMALL, "--gin_param=Runner.steps = 100000", "--gin_param=Runner.log_every = 50"]
    command = [sys.executable, str(ROOT / "tools" / "train.py"), *files]
    process = subprocess.Popen(
        [*command, f"--output_dir={folder.path}"], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
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
    state = sealed.load(folder.checkpoint)
    assert state["state"]["steps"] == result["steps"] < 100000
