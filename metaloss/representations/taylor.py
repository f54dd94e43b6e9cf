"""A loss as a truncated Taylor polynomial in prediction and target (TaylorGLO)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaloss.errors import ConfigError
from metaloss.representations.base import REPRESENTATIONS, Representation

#: Per order: exponents (a, b) and factor k of the terms k · (target - c₀)ᵃ (prediction - c₁)ᵇ, only
#: those with a gradient in the prediction.
TERMS = {
    2: ((0, 1, 1.0), (0, 2, 1 / 2), (1, 1, 1.0)),
    3: ((0, 1, 1.0), (0, 2, 1 / 2), (0, 3, 1 / 6), (1, 1, 1.0), (1, 2, 1 / 2), (2, 1, 1 / 2)),
}


@REPRESENTATIONS.register("taylor")
class Taylor(Representation):
    """Taylor polynomial around a learned centre (Gonzalez & Miikkulainen, 2021; paper, Table 4).

    Order 3 has 8 parameters: the centre (c₀, c₁) of target and prediction, and the coefficients of
    y, y², y³, xy, xy², x²y with x = target - c₀ and y = prediction - c₁; order 2 has 5: the centre
    and y, y², xy. All start from N(0, 1)·10⁻³. The mean over the outputs, as for the network.

    Args:
        order: 2 (quadratic) or 3 (cubic).

    Raises:
        ConfigError: another order.
    """

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        if order not in TERMS:
            raise ConfigError(f"representations.taylor.order: 2 or 3, not {order!r}")
        self.order = order
        self.centre = nn.Parameter(1e-3 * torch.randn(2))
        self.coefficients = nn.Parameter(1e-3 * torch.randn(len(TERMS[order])))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        x, y = target - self.centre[0], prediction - self.centre[1]
        total = sum(
            coefficient * factor * x**a * y**b
            for coefficient, (a, b, factor) in zip(
                self.coefficients, TERMS[self.order], strict=True
            )
        )
        return total.mean(-1)
