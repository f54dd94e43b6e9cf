"""A learning rate that stays positive."""

from __future__ import annotations

import math

from torch import Tensor

from metaloss.base_optimizers.rates.base import RATES, Rate
from metaloss.errors import InputError


@RATES.register("exponential")
class Exponential(Rate):
    """α = eˣ: positive, and a step of the meta-optimizer changes it by a factor.

    A meta learning rate of 0.01 changes α by about 1 % a meta-step.
    """

    def decode(self, x: Tensor) -> Tensor:
        return x.exp()

    def encode(self, alpha: float) -> float:
        if alpha <= 0:
            raise InputError(f"rates.exponential: the learning rate {alpha:g} is not positive")
        return math.log(alpha)
