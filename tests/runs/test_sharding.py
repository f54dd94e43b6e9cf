"""A run whose training is made in shards is the run of one process; so are its files."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch

from metaloss.errors import InputError
from metaloss.machine import distributed, processes
from tests.helpers import assert_same_state
from tests.runs import ranks
from tests.runs.test_distributed import assert_close, ends, start

pytestmark = pytest.mark.full  # processes of their own
UNEVEN = ["backbones.mlp.hidden = (9, 7)", "base_optimizers.sgd.lr = 0.1"]
ADAMW = [
    *UNEVEN[:1],
    "Runner.base_optimizer = @base_optimizers.adamw",
    "base_optimizers.adamw.lr = 0.01",  # the trial's share is a quotient of falls: no tiny ones
    "Runner.schedule = @schedules.cosine",
    "Runner.clip_norm = 0.5",
    "Runner.micro_batches = 2",
    "Runner.keep_best = 'valid'",
    "Runner.frozen_until = {'1.bias': None}",
    "Runner.evaluate_every = 4",
    "Runner.checkpointed = ['3']",
]
#: Method and bindings of each run.
RUNS = {"momentum": ("adalfl", UNEVEN), "adamw": ("adalfl", ADAMW), "meta_lr": ("meta_lr", UNEVEN)}
REFUSED = {
    "its engine differentiates the whole model: take ": "online_one_step.engine = @engines.sweep()",
    "Runner.ema takes a mean over all of θ after each step": "Runner.ema = 0.9",
    "Runner.frozen_until changes what is trained in ": "Runner.frozen_until = {'1.bias': 3}",
    "Runner.memory_format: ": "Runner.memory_format = 'channels_last'",
}


def main(root: Path) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    with processes.joined(120):
        codes = [
            ranks.run(root / name, method, extra, sharded=True)
            for name, (method, extra) in RUNS.items()
        ]
        codes.append(ranks.run(root / "stops", "adalfl", ADAMW, stop_at=7, sharded=True))
        codes.append(ranks.run(root / "stops", "adalfl", ADAMW, resume=True, sharded=True))
        codes.append(ranks.run(root / "one then two", *RUNS["adamw"], resume=True, sharded=True))
        codes.append(ranks.run(root / "two then one", *RUNS["adamw"], stop_at=7, sharded=True))
        said = []
        for asked in REFUSED.values():
            try:
                ranks.run(root / "refused", "adalfl", [*UNEVEN, asked], sharded=True)
            except InputError as error:
                said.append(str(error))
        torch.save((codes, said), root / f"{distributed.rank()}.pt")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sharding")
    stopped = 128 + signal.SIGTERM
    assert ranks.run(root / "one then two", *RUNS["adamw"], stop_at=7) == stopped
    (first, said), (second, others) = ends(start("-m", "tests.runs.test_sharding", root))
    assert (first, second, others) == (0, 0, ""), said + others
    return root


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_shards_is_that_of_one_process(name, root, tmp_path):
    """Rows, θ, φ, moments and streams; the checkpoint is as ever, and goes on in one process."""
    assert ranks.run(tmp_path / "one", *RUNS[name]) == 0
    assert_close(root / name, tmp_path / "one")


def test_it_goes_on_in_shards_bit_for_bit_and_in_any_number_of_processes(root):
    assert_same_state(root / "stops", root / "adamw")
    assert ranks.run(root / "two then one", *RUNS["adamw"], resume=True) == 0
    assert_close(root / "two then one", root / "adamw")
    assert_close(root / "one then two", root / "adamw")


def test_all_processes_end_alike_and_refuse_alike(root):
    for rank in (0, 1):
        codes, said = torch.load(root / f"{rank}.pt")
        assert codes == [0, 0, 0, 143, 0, 0, 143]
        for line, beginning in zip(said, REFUSED, strict=True):
            assert line.startswith(f"--sharded: {beginning}")


def test_one_process_has_no_shards(tmp_path):
    with pytest.raises(InputError, match="--sharded: there is one process: start it by torchrun"):
        ranks.run(tmp_path / "run", sharded=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
