"""Evaluation: loss and metrics of a model on a split."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metaloss.runs.scores import Scores, scores
from metaloss.tasks.base import OBJECTIVES, Data

CHUNK = 1000  #: examples at once; the result does not depend on it but for rounding


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Data,
    split: str,
    limit: int | None = None,
    look: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[str, float]:
    """Means over a split, in eval mode; the model's mode is put back.

    Args:
        model: maps inputs to outputs.
        data: on the model's device.
        split: "train", "valid" or "test".
        limit: take the first so many examples; None: all.
        look: is given the outputs and labels of each batch.

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
        if look is not None:
            look(outputs, labels)
        for name, total in _totals(outputs, labels, data).items():
            totals[name] += total.item() if finite else math.nan
    model.train(training)
    means = {name: total / count for name, total in totals.items()}
    if "rmse" in means:
        means["rmse"] = math.sqrt(means["rmse"])
    return means


@dataclass(frozen=True)
class Examination:
    """A model on a whole split: its numbers, its scores, and the metric of each example.

    Attributes:
        numbers: of `evaluate`, and those of `scores`.
        scores: see `metaloss.runs.scores`.
        errors: the metric of each example, [n].
        labels: of the examples, in order, on the CPU.
    """

    numbers: dict[str, float]
    scores: Scores
    errors: Tensor
    labels: Tensor


def examine(model: nn.Module, data: Data, split: str) -> Examination:
    """All that is said of a model at the end; the outputs of the whole split are held at once.

    A task with an objective of its own, whose outputs may be of any shape, has no scores: then they
    are not held.

    Args:
        model, data, split: see `evaluate`.
    """
    objective = data.objective
    scored = objective in OBJECTIVES.values()
    kept: list[list[Tensor]] = [[], [], []]

    def keep(outputs: Tensor, labels: Tensor) -> None:
        given = (objective.errors(outputs, labels), labels, outputs if scored else outputs[:0])
        for held, values in zip(kept, given, strict=True):
            held.append(values.cpu())

    numbers = evaluate(model, data, split, look=keep)
    errors, labels, outputs = (torch.cat(values) for values in kept)
    found = scores(outputs, labels, objective) if scored else Scores({})
    return Examination({**numbers, **found.numbers}, found, errors, labels)


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
