"""The contract of tasks."""

from __future__ import annotations

from pathlib import Path

import torch

from metaloss.tasks.base import SPLITS, Task
from metaloss.testing.base import require


def check_task(task: Task, data_dir: Path, own_validation: bool = False) -> None:
    """Holds a task to the contract in `metaloss.tasks.base`.

    Args:
        task: the object.
        data_dir: where its data is.
        own_validation: the data brings its validation split, so that no seed decides it.
    """
    data, same, other = (
        task.load(data_dir, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    require(set(data.splits) == set(SPLITS), f"has splits {sorted(data.splits)}, not {SPLITS}")
    rows: dict[str, set[bytes]] = {}
    for name, (inputs, labels) in data.splits.items():
        require(
            len(inputs) == len(labels) > 0, f"{name}: {len(inputs)} inputs, {len(labels)} labels"
        )
        require(inputs.isfinite().all(), f"{name}: inputs are not finite")
        require(labels.isfinite().all(), f"{name}: labels are not finite")
        require(same.splits[name][0].equal(inputs), f"{name}: equal generators give other splits")
        rows[name] = {x.numpy().tobytes() for x in inputs}
    seed_decides = not other.splits["valid"][0].equal(data.splits["valid"][0])
    require(seed_decides or own_validation, "validation ignores the seed")
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        # Data sets hold a few examples twice; splits that overlap share many.
        shared = len(rows[a] & rows[b]) / len(rows[b])
        require(shared < 0.02, f"{a} and {b} share {shared:.0%} of their examples")
    (x, y), (same_x, same_y) = (
        data.draw("train", task.batch_size, torch.Generator().manual_seed(0)) for _ in range(2)
    )
    require(x.equal(same_x) and y.equal(same_y), "equal generators draw other batches")
    require(x.isfinite().all() and x.is_floating_point(), "inputs are no finite numbers")
    require(x.shape[1:] == data.input_shape, f"inputs {list(x.shape[1:])}, not {data.input_shape}")
    if data.inputs is not None:
        prepared, stored = data.inputs.prepare(data.raw("test")), data.splits["test"][0]
        require(prepared.allclose(stored, atol=1e-4), "raw inputs, prepared, are not the inputs")
    outputs = torch.randn(len(x), data.outputs)
    objective = data.objective
    prediction, target = objective.link(outputs, y)
    require(prediction.shape == target.shape == outputs.shape, "the link changes the shape")
    require(objective.loss(outputs, y).ndim == 0, "the task loss is no scalar")
    require(objective.errors(outputs, y).shape == (len(x),), "the metric is not per example")
