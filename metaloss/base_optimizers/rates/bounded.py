"""A learning rate between two bounds."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from metaloss.base_optimizers.rates.base import RATES, Rate
from metaloss.config.arguments import PositiveFloat, check
from metaloss.errors import InputError


@RATES.register("bounded")
class Bounded(Rate):
    """α = low · (high / low)^sigmoid(x): between the bounds, by factors as `exponential`.

    Args:
        low, high: the bounds, both positive; the base optimizer's own rate lies between them.
    """

    def __init__(self, low: PositiveFloat = 1e-6, high: float = 1.0) -> None:
        check("high", high, Annotated[float, Gt(low)])
        self.low = low
        self.high = high

    def decode(self, x: Tensor) -> Tensor:
        return self.low * (self.high / self.low) ** x.sigmoid()

    def encode(self, alpha: float) -> float:
        if not self.low < alpha < self.high:
            raise InputError(
                f"rates.bounded: the learning rate {alpha:g} is not between low = {self.low:g} and "
                f"high = {self.high:g}"
            )
        share = math.log(alpha / self.low) / math.log(self.high / self.low)
        return math.log(share / (1 - share))
