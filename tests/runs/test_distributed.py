"""One run in several processes: equal to the run in one, whoever stops, dies or is at fault."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metaloss import REPRESENTATIONS, AdaLFL
from metaloss.errors import InputError
from metaloss.machine import distributed, processes, sealed
from tests.helpers import ROOT, assert_same_state, rows
from tests.runs import ranks

PATIENT = 300  #: seconds, on a busy machine; what does not end at all is the error
FEW = [f"--gin_param={p}" for p in [*ranks.QUICK, *ranks.METHODS["adalfl"]]]
FILES = ["--gin_file=tasks/digits_mlp.gin", "--gin_file=methods/adalfl.gin"]
LOST = (
    r"error: process 0 of 2 has lost another one, which ended or did not answer in time "
    r"\([^.]+[^)]*\): --resume goes on from the last checkpoint"
)
TRAIN = [str(ROOT / "tools" / "train.py"), *FILES, *FEW, "--device=cpu"]


def start(*arguments: object, count: int = 2) -> list[subprocess.Popen]:
    """Processes side by side, told their places as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    told |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *map(str, arguments)],
            env={**os.environ, **told, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for r in range(count)
    ]  # fmt: skip


def ends(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and standard error of each; none of them may wait for ever."""
    try:
        return [(p.returncode, err) for p in started for _, err in [p.communicate(timeout=PATIENT)]]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def wait_for(path: Path, size: int, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + PATIENT
    while not (path.is_file() and path.stat().st_size > size):
        assert time.monotonic() < deadline and all(p.poll() is None for p in started)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """What two processes left; one process had left a run that they go on with."""
    root = tmp_path_factory.mktemp("ranks")
    draw = np.random.default_rng(0)
    images = {f"x_{s}": draw.integers(0, 256, (40, 8, 8, 3), np.uint8) for s in ("train", "test")}
    np.savez(root / "images.npz", **images, y_train=np.arange(40) % 4, y_test=np.arange(40) % 4)
    (root / "drops.py").write_text(ranks.DROPPING)
    assert ranks.run(root / "one then two", stop_at=7) == 128 + signal.SIGTERM
    started = start("-m", "tests.runs.ranks", root)
    (first, said), (second, others) = ends(started)
    assert (first, second, others) == (0, 0, ""), said + others
    assert "training 20/20" in said
    return root


@pytest.fixture(scope="module")
def found(root) -> list[dict]:
    return [torch.load(root / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> list[dict]:
    """Of the small run: what two processes computed in some cases, and no runs."""
    root = tmp_path_factory.mktemp("few")
    (first, said), (second, others) = ends(start("-m", "tests.runs.ranks", root, *SMALL))
    assert (first, second) == (0, 0), said + others
    return [torch.load(root / f"{rank}.pt") for rank in (0, 1)]


#: Cases that the small run has; all others, and all runs, are a minute's work of three processes.
SMALL = ("baseline", "online exact", "online sweep", "batch norm exact")


@pytest.mark.parametrize("case", SMALL)
def test_two_processes_are_one(case, few):
    assert_one(case, few)


@pytest.mark.full
@pytest.mark.parametrize("case", ranks.CASES)
def test_two_processes_are_one_in_every_case(case, found):
    assert_one(case, found)


def assert_one(case: str, found: list[dict]) -> None:
    """θ, buffers, φ, α and all losses, over 20 steps of uneven batches; and equal bits on both."""
    expected = ranks.compute(case)
    first, second = (results["cases"][case] for results in found)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        assert first[name].equal(second[name]), name
        assert torch.allclose(first[name], value, rtol=1e-9, atol=1e-9), name
    assert not expected["metrics"][0].equal(expected["metrics"][-1])


def assert_close(a: Path, b: Path) -> None:
    """Equal rows and states of two runs in float32, but for rounding; equal streams of batches."""
    for one, other in zip(rows(a), rows(b), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            expected = other[name]
            if name == "adjoint_residual":  # rounding itself, of either way to sum
                assert value < 1e-5 and expected < 1e-5, (name, one, other)
                continue
            if isinstance(value, float):
                expected = pytest.approx(expected, rel=1e-6, abs=1e-6)
            assert value == expected, (name, one, other)
    states = [sealed.load(folder / "checkpoint.pt")["state"] for folder in (a, b)]
    for name, stream in states[0]["streams"].items():
        assert stream.equal(states[1]["streams"][name]), name
    for part in (lambda s: s["model"], lambda s: s["learner"]["loss"], lambda s: s["samples"]):
        one, other = map(part, states)
        assert one.keys() == other.keys()
        for name in one:
            assert torch.allclose(one[name], other[name], rtol=0, atol=1e-6), name


@pytest.mark.full
@pytest.mark.parametrize("method", ranks.METHODS)
def test_runs_of_two_processes_are_those_of_one(method, root, tmp_path):
    assert ranks.run(tmp_path / "one", method) == 0
    assert_close(root / method, tmp_path / "one")
    assert json.loads((root / method / "meta.json").read_text())["processes"] == 2
    assert json.loads((root / method / "result.json").read_text())["status"] == "finished"


@pytest.mark.full
@pytest.mark.parametrize("name", ranks.USUAL)
@pytest.mark.parametrize("method", ranks.METHODS)
def test_what_people_train_with_is_that_of_one_process(method, name, root, tmp_path):
    """Schedules, clipping, accumulation, means of weights; mixing, unfreezing, groups of rates."""
    assert ranks.run(tmp_path / "one", method, ranks.USUAL[name]) == 0
    assert_close(root / f"{method} {name}", tmp_path / "one")


@pytest.mark.full
def test_augmentation_is_that_of_the_whole_batch(root, tmp_path):
    assert ranks.run(tmp_path / "one", extra=ranks.IMAGES, data_dir=str(root)) == 0
    assert_close(root / "images", tmp_path / "one")


STREAMED = """
import sys
from pathlib import Path
from metaloss.machine import processes
from tests.runs import ranks

with processes.joined(120):
    root = Path(sys.argv[1])
    sys.exit(ranks.run(root / "streamed", extra=ranks.STREAMED, data_dir=str(root)))
"""


@pytest.mark.full  # six processes, each of which imports torch
def test_each_process_reads_its_share_of_a_stream(tmp_path):
    """Augmented by worker processes of its own; what a batch is does not depend on who reads it."""
    draw = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (first, said), (second, others) = ends(start("-c", STREAMED, tmp_path))
    assert (first, second) == (0, 0), said + others
    assert ranks.run(tmp_path / "one", extra=ranks.STREAMED, data_dir=str(tmp_path)) == 0
    assert_close(tmp_path / "streamed", tmp_path / "one")


@pytest.mark.full
def test_a_run_goes_on_with_another_number_of_processes(root):
    """One process was told to stop, both did, at the same step; and the other way round."""
    result = json.loads((root / "two then one" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped", 7)
    assert ranks.run(root / "two then one", resume=True) == 0
    assert_close(root / "two then one", root / "adalfl")
    assert_close(root / "one then two", root / "adalfl")


@pytest.mark.full
def test_dropout_masks_differ_and_resume_bit_for_bit(root):
    saved = sealed.load(root / "drops" / "checkpoint.pt")["state"]
    (others,) = saved["global_of_others"]
    assert not others[0].equal(saved["global"][0])
    assert rows(root / "drops and stops") == rows(root / "drops")
    assert_same_state(root / "drops and stops", root / "drops")


@pytest.mark.full
def test_the_first_process_alone_writes(found):
    first, second = (results["written"] for results in found)
    assert second == []
    for name in ("metrics.jsonl", "result.json", "checkpoint.pt", "learning_curve.png"):
        assert any(name in path for path in first), name


@pytest.mark.full
def test_all_processes_end_alike(found):
    stopped = 128 + signal.SIGTERM
    for results in found:
        assert results["codes"] == [*[0] * 25, stopped, 0, 0, stopped, 0, 3]


@pytest.mark.full
def test_torchrun_and_a_killed_process(tmp_path):
    """SIGKILL for one: the other ends with a line, and torchrun starts both again."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node=2", "--max_restarts=1",
            "--monitor_interval=5",  # seconds until it stops the other one, if that has not ended
            *TRAIN, "--gin_param=Runner.steps = 500",
            "--gin_param=Runner.checkpoint_every = 20", "--gin_param=Runner.log_every = 100",
            "--gin_param=Runner.evaluate_every = 500", f"--output_dir={folder}", "--resume",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(folder / "checkpoint.pt", 0, [process])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        environments = {int(c): Path(f"/proc/{c}/environ").read_bytes() for c in children}
        (victim,) = [c for c, told in environments.items() if b"\0LOCAL_RANK=1\0" in told]
        os.kill(victim, signal.SIGKILL)
        _, said = process.communicate(timeout=PATIENT)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(LOST, line)
    assert len((folder / "command.txt").read_text().splitlines()) == 2
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.full
def test_two_torchruns_with_addresses_of_their_own(tmp_path):
    """As on two machines: the second is told to stop, both do, and both go on, as one run."""
    folder = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*TRAIN, "--gin_param=Runner.steps = 300", "--gin_param=Runner.checkpoint_every = 20"]

    def node(rank: int) -> subprocess.Popen:
        told = {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [
                sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2",
                f"--node_rank={rank}", "--nproc_per_node=1", "--master_addr=127.0.0.1",
                f"--master_port={port}", f"--local_addr=127.0.0.{rank + 1}", *words, "--resume",
                f"--output_dir={folder}",
            ],
            env={**os.environ, **told},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    nodes = [node(0), node(1)]
    wait_for(folder / "checkpoint.pt", 0, nodes)
    nodes[1].send_signal(signal.SIGTERM)
    ends(nodes)
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "stopped" and 0 < result["steps"] < 300
    for code, said in ends([node(0), node(1)]):
        assert code == 0, said
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("finished", 300)
    assert json.loads((folder / "meta.json").read_text())["processes"] == 2
    flags = [word.removeprefix("--gin_param=") for word in words if "gin_param" in word]
    assert ranks.run(tmp_path / "one", extra=flags) == 0
    alone = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["test_metrics"]["loss"] == pytest.approx(alone["test_metrics"]["loss"], rel=1e-4)


@pytest.mark.full
def test_a_process_that_does_not_answer(tmp_path):
    started = start(*TRAIN, "--gin_param=Runner.steps = 1000000", "--patience=4",
                    f"--output_dir={tmp_path / 'run'}")  # fmt: skip
    wait_for(tmp_path / "run" / "metrics.jsonl", 3000, started)
    started[1].send_signal(signal.SIGSTOP)
    try:
        _, said = started[0].communicate(timeout=PATIENT)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[0].returncode == 1
    assert re.fullmatch(LOST, said.splitlines()[-1])


@pytest.mark.full  # processes that each import torch
def test_bad_input_is_told_once(tmp_path):
    """By whichever process has it first; all end with the exit code, and leave no folder."""
    task = ["--gin_param=Runner.task = @tasks.arrays()", "--gin_param=tasks.arrays.path = 'no.npz'"]
    folder = tmp_path / "run"
    results = ends(start(*TRAIN, *task, f"--data_dir={tmp_path}", f"--output_dir={folder}"))
    assert [code for code, _ in results] == [2, 2]
    warning, error = "".join(said for _, said in results).splitlines()
    assert warning.startswith("warning: nobody reads: ")
    complaint = "set tasks.arrays.path, absolute or inside --data_dir"
    assert error == f"error: no file {tmp_path / 'no.npz'}: {complaint}"
    assert not folder.exists()


@pytest.mark.full
def test_what_several_processes_cannot_do_is_refused(root, found):
    for results in found:
        assert results["refusals"] == [
            "a batch of 1 cannot be shared by 2 processes: start no more processes than the "
            "smallest batch has examples",
            "process 1 is asked for another run than process 0",
            "the model has SyncBatchNorm layers, which no forward-mode pass follows: give it with "
            "plain BatchNorm, whose batch statistics are then each process's own",
            "process 1 has a model or a loss of other shapes than process 0",
            "--device cuda:1: each of several processes takes a GPU of its own; give auto, cuda or "
            "cpu",
        ]
    assert not (root / "refused").exists()


def test_wrapped_by_hand_is_refused():
    model = nn.Linear(2, 2)
    wrapped = nn.DataParallel(model)
    with pytest.raises(InputError) as refusal:
        AdaLFL(wrapped, torch.optim.SGD(model.parameters(), 0.1), REPRESENTATIONS["nn"]())
    assert str(refusal.value) == (
        "the model is wrapped in DataParallel, whose gradients do not pass through "
        "torch.autograd.grad: give the plain module, and start the script with torchrun; metaloss "
        "averages over its processes by itself"
    )


def test_alone_nothing_is_averaged_or_copied():
    vector = [torch.ones(2), None]
    mean = distributed.mean(vector, [torch.ones(2)] * 2, 3)
    assert mean[0] is vector[0] and mean[1] is None
    assert torch.arange(5)[distributed.share(5)].equal(torch.arange(5))
    assert (distributed.count(), distributed.rank(), distributed.gather(7)) == (1, 0, [7])
    assert distributed.anywhere(True) and not distributed.anywhere(False)
    with processes.joined():
        assert not distributed.several()
    assert processes.own_device("cuda:1") == "cuda:1"


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    """By the words of the launcher; no GPU is touched here."""
    chosen = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="LOCAL_RANK and LOCAL_WORLD_SIZE do not say which GPU"):
        processes.own_device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [processes.own_device(name) for name in ("auto", "cuda", "cpu")] == [
        "cuda:1", "cuda:1", "cpu",
    ]  # fmt: skip
    assert chosen == [1, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError) as refusal:
        processes.own_device("auto")
    assert str(refusal.value) == (
        "3 processes for 2 GPUs on this machine: start one for each GPU, or give --device=cpu"
    )


def test_patience_is_positive(refused):
    assert refused("--patience=0") == "--patience 0: more than 0 seconds"
