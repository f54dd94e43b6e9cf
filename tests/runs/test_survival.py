"""Survival: whatever ends a run, nothing that was saved is lost, and it goes on bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from metaloss.machine import lock, sealed
from metaloss.runs import launch, pictures
from metaloss.runs.callbacks import tensorboard
from metaloss.runs.callbacks.base import Look, Start
from metaloss.runs.folder import RunFolder
from metaloss.runs.progress import Progress, speaking
from metaloss.runs.run import Run
from tests.helpers import (
    COSTS,
    METHODS,
    QUICK,
    ROOT,
    Killed,
    assert_same_state,
    rows,
    said,
    sketch,
    thinned,
)
from tests.helpers import train as run
from tests.runs import lives

KILLED = -signal.SIGKILL
FULL = "cannot be written: [Errno 28] No space left on device"


def arguments(folder: Path) -> list[str]:
    """Of a start, or of one that goes on."""
    parameters = [*QUICK, *METHODS["adalfl"]]
    return [
        "--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl.gin", "--device=cpu",
        *(f"--gin_param={parameter}" for parameter in parameters), f"--output_dir={folder}",
        "--resume",
    ]  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, but for the clock."""
    seen = {}
    for part in filter(Path.is_dir, (folder, folder / "initialization")):
        events = EventAccumulator(str(part), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("time/"):
                shown = [(event.step, event.value) for event in events.Scalars(tag)]
                seen[f"{part.relative_to(folder)}/{tag}"] = shown
    return seen


def assert_same_run(folder: Path, whole: Path) -> None:
    """All that an ended run leaves, but for the clock and the memory."""
    assert rows(folder) == rows(whole)
    assert_same_state(folder, whole)
    assert scalars(folder) == scalars(whole)
    results = [json.loads((path / "result.json").read_text()) for path in (folder, whole)]
    for result in results:
        assert result["seconds"] > 0 and result["peak_memory_bytes"] > 0
        for name in COSTS:
            del result[name]
    assert results[0] == results[1]
    for pattern in ("loss/*.safetensors", "figures/*"):
        one, other = (
            {path.name: path.read_bytes() for path in place.glob(pattern)}
            for place in (folder, whole)
        )
        assert one == other
        assert one
    assert not list(folder.rglob("*.partial"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run with a sketch for pictures, and how many file operations it made."""
    base = tmp_path_factory.mktemp("whole")
    counted = partial(lives.count, base / "run", base / "count")
    code, lines = lives.lead(arguments(base / "run"), base / "log", lives.sketch, counted)
    assert code == 0, lines
    return base / "run", (base / "count").stat().st_size


# --- SIGKILL ---


@pytest.mark.parametrize("seed", thinned(zip(range(3)), keep=lambda seed: seed == 0))
def test_killed_before_any_file_operation_again_and_again(seed, whole, tmp_path):
    """Both phases, starts, checkpoints, exports and the ends of runs are among them."""
    undisturbed, operations = whole
    draw, folder = random.Random(seed), tmp_path / "run"
    for _ in range(5):
        killed = lives.at(folder, draw.randint(1, operations), lives.kill)
        code, lines = lives.lead(arguments(folder), tmp_path / "log", lives.sketch, killed)
        assert code in (KILLED, 0), lines  # 0: what was left had fewer operations
    code, lines = lives.lead(arguments(folder), tmp_path / "log", lives.sketch)
    assert code == 0, lines
    assert_same_run(folder, undisturbed)


def test_killed_in_the_midst_of_writing_checkpoints(whole, tmp_path):
    folder = tmp_path / "run"
    for parts in (7, 90, 200, 333):  # of one or of several checkpoints
        killed = partial(lives.kill_in_write, folder, parts)
        assert lives.lead(arguments(folder), tmp_path / "log", lives.sketch, killed)[0] == KILLED
        assert list(folder.glob(".checkpoint.pt.*.partial"))
    code, lines = lives.lead(arguments(folder), tmp_path / "log", lives.sketch)
    assert code == 0, lines
    assert_same_run(folder, whole[0])


def test_killed_between_the_two_moves_of_a_checkpoint(whole, tmp_path):
    folder = tmp_path / "run"
    moved = f".partial {folder / 'checkpoint.pt'}"
    for expected in (False, True):  # the first checkpoint has none before it
        killed = lives.at(folder, "checkpoint.previous.pt" if expected else moved, lives.kill)
        assert lives.lead(arguments(folder), tmp_path / "log", lives.sketch, killed)[0] == KILLED
        assert not (folder / "checkpoint.previous.pt").exists()
    for _ in range(2):
        killed = lives.at(folder, moved, lives.kill)
        assert lives.lead(arguments(folder), tmp_path / "log", lives.sketch, killed)[0] == KILLED
        assert (folder / "checkpoint.previous.pt").exists()
        assert not (folder / "checkpoint.pt").exists()
    assert lives.lead(arguments(folder), tmp_path / "log", lives.sketch)[0] == 0
    assert_same_run(folder, whole[0])


def test_killed_at_random_times(whole, tmp_path):
    draw, folder = random.Random(0), tmp_path / "run"
    for _ in range(4):
        process = lives.begin(arguments(folder), tmp_path / "log", lives.sketch)
        process.join(draw.uniform(0.1, 1.0))
        process.kill()
        process.join()
    code, lines = lives.lead(arguments(folder), tmp_path / "log", lives.sketch)
    assert code == 0, lines
    assert_same_run(folder, whole[0])


def test_a_whole_life(whole, tmp_path):
    """Kills in both phases, a flipped bit, kills while the results are written: the same run."""
    log, folder = tmp_path / "log", tmp_path / "run"

    def dies(what) -> list[str]:
        killed = lives.at(folder, what, lives.kill)
        code, lines = lives.lead(arguments(folder), log, lives.sketch, killed)
        assert code == KILLED, lines
        return lines

    dies(45)
    dies("loss/.model.safetensors")  # in training
    dies(60)
    path = folder / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    warned = f"WARNING {path} is no whole checkpoint (its checksum does not "
    assert any(line.startswith(warned) for line in said("\n".join(dies("figures/.one.png"))))
    dies("figures/.other.png")
    dies(".result.json")
    assert not (folder / "result.json").exists()
    assert lives.lead(arguments(folder), log, lives.sketch)[0] == 0
    assert_same_run(folder, whole[0])
    result = json.loads((folder / "result.json").read_text())
    code, lines = lives.lead(arguments(folder), log)  # and it is not made again
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith(f"{folder}: this run has ended already; finished, digits + mlp")
    assert json.loads((folder / "result.json").read_text()) == result


@pytest.mark.full  # whole figures, killed again and again
def test_killed_while_real_figures_are_written(tmp_path):
    log, undisturbed, folder = tmp_path / "log", tmp_path / "whole", tmp_path / "run"
    assert lives.lead(arguments(undisturbed), log, lives.draw_all)[0] == 0
    killed = lives.at(folder, "figures/.loss.gif", lives.kill)
    assert lives.lead(arguments(folder), log, lives.draw_all, killed)[0] == KILLED
    assert (folder / "figures" / "loss.png").exists()
    assert not (folder / "figures" / "loss.gif").exists()
    assert lives.lead(arguments(folder), log, lives.draw_all)[0] == 0
    assert_same_run(folder, undisturbed)
    assert len(list((folder / "figures").iterdir())) == 8


# --- damaged files ---


@pytest.fixture
def dead(tmp_path, monkeypatch, capsys):
    """A function: a run of this process dies after so many steps of both phases; -> its folder."""

    def dead(moment: int, **options) -> Path:
        after_step = Run._record

        def die(self, *rest):
            after_step(self, *rest)
            if self.state.init_steps + self.state.steps == moment:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Run, "_record", die)
            with pytest.raises(Killed):
                run(tmp_path / "run", **options)
        capsys.readouterr()
        return tmp_path / "run"

    monkeypatch.setattr("metaloss.runs.inspection.look", lambda learner, batch, step: Look(step))
    monkeypatch.setattr(pictures, "draw", sketch)
    return dead


MOMENTS = (
    (9, "meta-step 8, step 0"),  # at the end of the initialisation
    (13, "meta-step 9, step 0"),  # the latest is of the training, the one before not
    (19, "meta-step 9, step 4"),
)
DAMAGES = ("cut", "flipped", "empty")


@pytest.mark.parametrize(
    ("damage", "moment", "at"),
    thinned(
        ((damage, *moment) for damage in DAMAGES for moment in MOMENTS),
        keep=lambda damage, moment, _: DAMAGES.index(damage) == (9, 13, 19).index(moment),
    ),
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(moment, at, damage, dead, whole, capsys):
    folder = dead(moment)
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[2000] ^= 4
    path.write_bytes({"cut": content[:-1000], "flipped": flipped, "empty": b""}[damage])
    assert run(folder, resume=True) == 0
    reason = "its checksum does not match" if damage == "flipped" else "File is not a zip file"
    assert (
        f"WARNING {path} is no whole checkpoint ({reason}): going on from the one before, {at}"
    ) in said(capsys.readouterr().err)
    assert_same_run(folder, whole[0])


def test_metrics_that_are_cut_short_are_refused(dead, train):
    folder = dead(13)
    path = folder / "metrics.jsonl"
    size = sealed.load(folder / "checkpoint.pt")["metrics_bytes"]
    content = path.read_bytes()
    path.write_bytes(content[: size - 1])
    code, error = train(*arguments(folder))
    assert code == 2
    assert error.splitlines()[-1] == (
        f"error: {path} is cut short: {size - 1} bytes of the {size} that the checkpoint counts; "
        "put it back, or remove the run folder to start the run over"
    )
    path.write_bytes(content)
    assert train(*arguments(folder))[0] == 0


def test_what_a_killed_process_was_writing_is_removed(dead):
    folder = dead(13)
    for name in (".checkpoint.pt.a1b2c3.partial", "loss/.model.safetensors.x.partial"):
        (folder / name).write_bytes(b"half")
    assert run(folder, resume=True) == 0
    assert not list(folder.rglob("*.partial"))


def test_vanished_data_are_named_and_what_was_saved_stays(dead, tmp_path, train):
    draw = np.random.default_rng(0)
    path = tmp_path / "own.npz"
    content = {
        f"{x}_{split}": draw.random((40, 6)) if x == "x" else np.arange(40) % 4
        for x in "xy"
        for split in ("train", "test")
    }
    np.savez(path, **content)
    own = ("Runner.task = @tasks.arrays()", "tasks.arrays.path = 'own.npz'",
           "tasks.arrays.batch_size = 8")  # fmt: skip
    options = {"extra": own, "data_dir": str(tmp_path)}
    folder = dead(17, **options)
    data = path.read_bytes()
    path.unlink()
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    resume = [f"--output_dir={folder}", "--resume", "--device=cpu", f"--data_dir={tmp_path}"]
    code, error = train(*resume)
    assert (code, error) == (
        2,
        f"error: no file {path}: set tasks.arrays.path, absolute or inside --data_dir\n",
    )
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    path.write_bytes(data)
    assert train(*resume)[0] == 0
    undisturbed = tmp_path / "undisturbed"
    assert run(undisturbed, **options) == 0
    assert_same_run(folder, undisturbed)


# --- disks ---


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, where this user may mount one; else a folder. -> it, and which."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = lives.mount(folder)
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    "moment",
    ["metrics.jsonl", "tfevents", ".checkpoint.pt", "previous.pt", ".trajectory.safetensors",
     "figures", ".result.json"],
)  # fmt: skip
def test_a_full_disk_ends_the_run_in_one_line(moment, disk, whole, tmp_path):
    """Where no disk can be mounted, files cannot grow: as real, with another number."""
    (place, mounted), log = disk, tmp_path / "log"
    folder = place / "run"
    full = partial(lives.fill, place) if mounted else lives.limit
    moment = moment if mounted else ".checkpoint.pt"
    code, lines = lives.lead(arguments(folder), log, lives.sketch, lives.at(folder, moment, full))
    assert code == 2, lines
    reason = FULL if mounted else "cannot be written: [Errno 27] File too large"
    assert lines[-1].startswith(f"error: {folder}")
    assert lines[-1].endswith(reason)
    told = ("INFO ", "WARNING without figures", "WARNING initialisation")
    assert all(line.startswith(told) for line in said("\n".join(lines[:-1])))
    assert not list(folder.rglob("*.partial"))
    if sealed.exists(folder / "checkpoint.pt"):
        assert sealed.load_last(folder / "checkpoint.pt")[1] is None
    (place / "filler").unlink(missing_ok=True)
    code, lines = lives.lead(arguments(folder), log, lives.sketch)
    assert code == 0, lines
    assert_same_run(folder, whole[0])


def test_files_that_cannot_grow_end_the_run_in_one_line(whole, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    limited = lives.at(folder, ".checkpoint.pt", lives.limit)
    code, lines = lives.lead(arguments(folder), log, lives.sketch, limited)
    error = f"error: {folder}/checkpoint.pt cannot be written: [Errno 27] File too large"
    assert (code, lines[-1]) == (2, error)
    assert lives.lead(arguments(folder), log, lives.sketch)[0] == 0
    assert_same_run(folder, whole[0])


def test_a_terminal_that_takes_no_more_does_not_end_a_run(monkeypatch):
    with pytest.raises(OSError, match="No space left"), Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stderr", full)
        with speaking():
            Progress("mse", learned=False).say("far")
        told = True
    assert told  # it is the end of the file that fails


@pytest.fixture
def read_only(tmp_path):
    """A function that lets nobody write below a folder, root neither."""
    bound, closed = [], []

    def read_only(folder: Path) -> None:
        bind = ["mount", "--bind", folder, folder]
        if not subprocess.run(bind, stderr=subprocess.DEVNULL, check=False).returncode:
            bound.append(folder)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        elif os.geteuid():
            closed.append(folder)
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        else:
            subprocess.run(["chattr", "-R", "+i", folder], check=True)
            closed.append(folder)

    yield read_only
    for folder in bound:
        subprocess.run(["umount", folder], check=True)
    for folder in closed:
        if os.geteuid():
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode | stat.S_IWUSR)
        else:
            subprocess.run(["chattr", "-R", "-i", folder], check=True)


def test_a_folder_that_cannot_be_written_is_named(dead, read_only, train):
    folder = dead(13)
    read_only(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    code, error = train(*arguments(folder))
    assert code == 2
    assert error.startswith(f"error: {folder}/.lock cannot be written: [Errno ")
    assert error.count("\n") == 1
    code, error = train(*arguments(folder / "new"))
    assert code == 2
    assert error.startswith(f"error: {folder}/new cannot be written to: [Errno ")
    assert error.count("\n") == 1
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


# --- processes and clocks ---


def test_of_two_processes_one_goes_on_and_the_other_says_who(whole, tmp_path, train):
    folder, log = tmp_path / "run", tmp_path / "log"
    waiting = lives.at(folder, ".checkpoint.pt", partial(lives.wait_to_be_killed, folder))
    first = lives.begin(arguments(folder), log, lives.sketch, waiting)
    deadline = time.monotonic() + 100
    while not (folder / "waits").exists():
        assert first.exitcode is None and time.monotonic() < deadline
        time.sleep(0.02)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    note = json.loads((folder / ".lock").read_text())
    assert note["pid"] == first.pid
    for _ in range(2):
        assert train(*arguments(folder)) == (
            2,
            f"error: {folder}/.lock is held by process {first.pid} on {note['host']} since "
            f"{note['since']}: one process at a time\n",
        )
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    first.kill()
    first.join()
    (folder / "waits").unlink()
    assert lives.lead(arguments(folder), log, lives.sketch)[0] == 0
    assert_same_run(folder, whole[0])


def test_a_fresh_start_beside_another_is_refused(tmp_path, train):
    folder = RunFolder(tmp_path / "run")
    with folder.held():
        code, error = train(*arguments(folder.path)[:-1])
    assert code == 2
    assert error.startswith(f"error: {folder.path}/.lock is held by process {os.getpid()} on ")
    assert [path.name for path in folder.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("resume", [False, True])
def test_who_comes_while_another_ends_finds_it_ended(resume, dead, tmp_path, monkeypatch, capsys):
    class Slow(Run):
        """Another process starts and ends while this one reads its data."""

        def __init__(self, *given) -> None:
            super().__init__(*given)
            monkeypatch.setattr(launch, "Run", Run)
            assert run(tmp_path / "run") == 0

    monkeypatch.setattr(launch, "Run", Slow)
    if resume:
        assert run(tmp_path / "run", resume=True) == 0
        assert "this run has ended already; finished" in capsys.readouterr().out
    else:
        with pytest.raises(launch.InputError, match="holds a run already"):
            run(tmp_path / "run")


@pytest.mark.parametrize("jump", [-400 * 86_400, 400 * 86_400])
def test_a_clock_that_jumps_changes_nothing(jump, dead, whole, monkeypatch):
    """The wall clock is set, and the monotonic one begins anew, as after a restart."""
    folder = dead(13)
    now, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    began = monotonic() - 5
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() - began)
    assert run(folder, resume=True) == 0
    assert_same_run(folder, whole[0])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0 and seconds[-1] < 86_400


# --- endings ---


def test_a_run_does_not_lose_its_result_to_its_figures(dead, whole, tmp_path, monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ValueError("no font\nat all")

    monkeypatch.setattr("metaloss.runs.inspection.look", broken)
    monkeypatch.setattr(pictures, "draw", broken)
    folder = tmp_path / "run"
    assert run(folder) == 0
    lines = said(capsys.readouterr().err)
    assert [line for line in lines if line.startswith("WARNING without")] == [
        "WARNING without the figures at step 7: ValueError: no font",
        "WARNING without the figures at step 14: ValueError: no font",
        f"WARNING without figures (tools/figures.py {folder} draws them): ValueError: no font",
    ]
    assert rows(folder) == rows(whole[0])
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


def test_interrupted_while_the_results_are_written(dead, whole, tmp_path, monkeypatch, train):
    folder = tmp_path / "run"

    def interrupt(*arguments):
        for _ in range(2):  # the first one lets it end
            os.kill(os.getpid(), signal.SIGINT)

    # A shell leaves it ignored in what it starts in the background, as a suite may be.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "draw", interrupt)
            code, error = train(*arguments(folder))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert error.splitlines()[-1] == (
        "interrupted: --resume goes on from the last checkpoint, if there is one"
    )
    assert not (folder / "result.json").exists()
    assert train(*arguments(folder))[0] == 0
    assert_same_run(folder, whole[0])


def test_the_lock_is_free_after_every_ending(dead, tmp_path):
    folder = dead(5)
    with lock.holding(folder / ".lock"):
        pass


def test_events_are_on_disk_as_soon_as_they_are_told(tmp_path):
    board = tensorboard.TensorBoard()
    board.begin(Start(tmp_path, "", {}, 0, "mse", {"train": 2}), {})
    board.after_step({"phase": "train", "step": 3, "seconds": 1.0, "skipped": 2})
    assert scalars(tmp_path) == {"./meta/skipped": [(3, 2.0)]}
    board.close()


def test_every_promise_of_the_document_has_its_test():
    text = (ROOT / "docs" / "survival.md").read_text()
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    promised = re.findall(r"`(test_\w+)`", text)
    assert len(promised) > 15
    assert [name for name in promised if f"def {name}(" not in there] == []
