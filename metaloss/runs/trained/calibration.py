"""Calibration: a temperature that makes probabilities as high as they are right (Guo et al., 2017).

Outputs are divided by one number T, the same for all: which class is likeliest does not change, but
how likely it is said to be. T has the lowest negative log-likelihood on the validation data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss.runs.evaluation import evaluate
from metaloss.runs.trained.saved_model import SavedModel, Weights
from metaloss.tasks.base import CLASSIFICATION, Data

LOWEST, HIGHEST = 0.05, 20.0  #: temperatures that are looked among


class Tempered(nn.Module):
    """A model whose outputs are divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.model(inputs)
        return outputs / self.temperature


def temperature(model: nn.Module, data: Data) -> float | None:
    """The best one on the validation split.

    Args:
        model: its outputs are of classes that exclude each other.
        data: on its device.

    Returns:
        None where there is none within `LOWEST` to `HIGHEST`: a model that is right on every
        example is the better the colder it is, and one that is worse than chance the hotter.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    evaluate(model, data, "valid", look=lambda *batch: kept.append(batch))
    outputs, labels = (torch.cat(parts).cpu() for parts in zip(*kept, strict=True))
    outputs = outputs.double()
    if not outputs.isfinite().all() or outputs.argmax(-1).equal(labels):
        return None
    cold = torch.ones((), dtype=torch.float64, requires_grad=True)  # 1 / T, in which it is convex
    descent = torch.optim.LBFGS([cold], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        descent.zero_grad()
        found = F.cross_entropy(outputs * cold, labels)
        found.backward()  # type: ignore[no-untyped-call]
        return float(found.detach())

    with torch.enable_grad():
        descent.step(loss)
    found = 1 / float(cold.detach())
    return found if LOWEST <= found <= HIGHEST else None


def calibrated(saved: SavedModel, data: Data) -> SavedModel:
    """A model with the temperature of each kind of its weights, where its outputs are of classes.

    Args:
        data: its own, on the device where it is tried.
    """
    if data.objective is not CLASSIFICATION:
        return saved
    device = data.splits["valid"][1].device
    weights: dict[str, Any] = {}
    for kind, held in saved.about["weights"].items():
        model = saved.build(cast(Weights, kind)).to(device)
        weights[kind] = {**held, "temperature": temperature(model, data)}
    return replace(saved, about={**saved.about, "weights": weights})
