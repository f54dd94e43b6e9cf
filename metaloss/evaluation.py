"""Evaluation: loss and metric of a model on a split."""

from __future__ import annotations

import math

import torch
from torch import nn

from metaloss.objective import Objective
from metaloss.problem import Batch

CHUNK = 1000  #: examples at once; the result does not depend on it but for rounding


@torch.no_grad()
def evaluate(model: nn.Module, split: Batch, objective: Objective) -> dict[str, float]:
    """Mean task loss and metric over a split, in eval mode; the model's mode is put back.

    Args:
        split: inputs [n, ...] and labels [n, ...].

    Returns:
        "loss" and the objective's metric; NaN where the model's outputs are.
    """
    inputs, labels = split
    training = model.training
    model.eval()
    loss, error = 0.0, 0.0
    for x, y in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
        outputs = model(x)
        loss += objective.loss(outputs, y).item() * len(x)
        errors = objective.errors(outputs, y).double().sum().item()
        error += errors if outputs.isfinite().all() else math.nan
    model.train(training)
    return {"loss": loss / len(inputs), objective.metric: error / len(inputs)}
