"""The bare learning rate, as the paper writes it."""

from __future__ import annotations

from torch import Tensor

from metaloss.base_optimizers.rates.base import RATES, Rate


@RATES.register("raw")
class Raw(Rate):
    """α = x, without bounds: it may become negative (paper, Algorithms 3 and 4)."""

    def decode(self, x: Tensor) -> Tensor:
        return x

    def encode(self, alpha: float) -> float:
        return alpha
