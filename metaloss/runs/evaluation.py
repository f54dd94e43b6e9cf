"""Evaluation: loss and metrics of a model on a split."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from metaloss.tasks.base import Data

CHUNK = 1000  #: examples at once; the result does not depend on it but for rounding


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Data,
    split: str,
    limit: int | None = None,
    errors: list[Tensor] | None = None,
) -> dict[str, float]:
    """Means over a split, in eval mode; the model's mode is put back.

    Args:
        model: maps inputs to outputs.
        data: on the model's device.
        split: "train", "valid" or "test".
        limit: take the first so many examples; None: all.
        errors: takes the metric of each example, a batch at a time, on the CPU.

    Returns:
        "loss" (the task loss) and the objective's metric; where the target has a unit of its own,
        "rmse" and "mae" in it. NaN where the model's outputs are.
    """
    training = model.training
    model.eval()
    count, totals = 0, defaultdict[str, float](float)
    for inputs, labels in data.in_order(split, CHUNK, limit):
        outputs = model(inputs)
        finite = bool(outputs.isfinite().all())
        count += len(labels)
        if errors is not None:
            errors.append(data.objective.errors(outputs, labels).cpu())
        for name, total in _totals(outputs, labels, data).items():
            totals[name] += total.item() if finite else math.nan
    model.train(training)
    means = {name: total / count for name, total in totals.items()}
    if "rmse" in means:
        means["rmse"] = math.sqrt(means["rmse"])
    return means


def _totals(outputs: Tensor, labels: Tensor, data: Data) -> dict[str, Tensor]:
    """Sums over a batch, of the squares for "rmse"."""
    objective = data.objective
    totals = {
        "loss": objective.loss(outputs, labels).double() * len(labels),
        objective.metric: objective.errors(outputs, labels).double().sum(),
    }
    if data.unit is not None:
        errors = (outputs - labels).double() * data.unit
        totals["rmse"] = errors.square().mean(-1).sum()
        totals["mae"] = errors.abs().mean(-1).sum()
    return totals
