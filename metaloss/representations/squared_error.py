"""Squared error: the handcrafted loss of regression."""

from __future__ import annotations

from torch import Tensor

from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("squared_error")
class SquaredError(Representation):
    """(1/C) Σᵢ (fᵢ - yᵢ)², without parameters; on probabilities it is the Brier score."""

    pairs = "mean"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(-1)
