"""A loss as a truncated Taylor polynomial in prediction and target (TaylorGLO)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("taylor")
class Taylor(Representation):
    """Taylor polynomial around a learned centre (Gonzalez & Miikkulainen, 2021; paper, Table 4).

    Σ c_ab xᵃyᵇ / (a! b!) with x = target - c₀ and y = prediction - c₁, over a + b <= order and
    b >= 1: a term without y has no gradient in the prediction. That makes 2 + k(k + 1)/2 parameters
    for order k: 5 and 8 for the paper's quadratic and cubic. All start from N(0, 1)·10⁻³. The mean
    over the outputs, as for the network.

    Args:
        order: k; at least 2, as a linear loss of probabilities that sum to 1 is all but constant.

    Raises:
        ConfigError: a smaller order.
    """

    pairs = "mean"
    linear_in = ("coefficients",)

    def __init__(self, order: Annotated[int, Ge(2)] = 3) -> None:
        super().__init__()
        self.order = order
        #: Exponents (a, b) of each term.
        self._powers = [(a, b) for a in range(order) for b in range(1, order - a + 1)]
        self.centre = nn.Parameter(1e-3 * torch.randn(2))
        self.coefficients = nn.Parameter(1e-3 * torch.randn(len(self._powers)))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        x, y = target - self.centre[0], prediction - self.centre[1]
        total = sum(
            coefficient * (1 / (math.factorial(a) * math.factorial(b))) * x**a * y**b
            for coefficient, (a, b) in zip(self.coefficients, self._powers, strict=True)
        )
        return total.mean(-1)
