"""Evaluation: loss and metric of a model on a split."""

from __future__ import annotations

import math

import torch
from torch import nn

from metaloss.tasks.base import Data

CHUNK = 1000  #: examples at once; the result does not depend on it but for rounding


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, split: str, limit: int | None = None
) -> dict[str, float]:
    """Mean task loss and metric over a split, in eval mode; the model's mode is put back.

    Args:
        model: maps inputs to outputs.
        data: on the model's device.
        split: "train", "valid" or "test".
        limit: take the first so many examples; None: all.

    Returns:
        "loss" and the objective's metric; NaN where the model's outputs are.
    """
    objective, training = data.objective, model.training
    model.eval()
    count, loss, error = 0, 0.0, 0.0
    for x, y in data.in_order(split, CHUNK, limit):
        outputs = model(x)
        count += len(x)
        loss += objective.loss(outputs, y).item() * len(x)
        errors = objective.errors(outputs, y).double().sum().item()
        error += errors if outputs.isfinite().all() else math.nan
    model.train(training)
    return {"loss": loss / count, objective.metric: error / count}
