"""Barron's general robust loss with a learned shape and scale."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from metaloss.config.arguments import PositiveFloat
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth

REACH = 14.0  #: log(2 - α) stays within ± REACH: α from about -10⁶ to 2 - 10⁻⁶
Alpha = Annotated[float, Gt(2 - math.exp(REACH)), Lt(2 - math.exp(-REACH))]


@REPRESENTATIONS.register("robust")
class Robust(Representation):
    """ρ(f - y) with a learned shape α < 2 and scale c (Barron, 2019, eq. 8), mean over the outputs.

    Squared error (α → 2), Charbonnier or pseudo-Huber (1), Cauchy (0), Geman-McClure (-2) and
    Welsch (α → -∞) are one family. With b = 2 - α, z = ½ ((f - y)/c)² and u = log(1 + 2z/b),

        ρ = b/α ((1 + 2z/b)^(α/2) - 1) = b/2 · u · (e^w - 1)/w,    w = αu/2,

    which has no singularity at α = 0. log b is learned, in which both ends of the family are smooth
    limits: the derivative by α itself is infinite at 2. For regression; on probabilities a robust
    relative of the Brier score.

    Args:
        alpha: α at the start, between -10⁶ and 2; near either end it hardly moves.
        c: c at the start: errors well below it count as squares.

    Raises:
        ConfigError: a number out of its range.
    """

    pairs = "mean"

    def __init__(self, alpha: Alpha = 1.0, c: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.c = c
        self.raw = nn.Parameter(torch.tensor(REACH * math.atanh(math.log(2 - alpha) / REACH)))
        self.log_c = nn.Parameter(torch.tensor(math.log(c)))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        b = (REACH * (self.raw / REACH).tanh()).exp()
        z = ((prediction - target) / self.log_c.exp()).square() / 2
        u = (2 * z / b).log1p()
        return (b / 2 * u * smooth.expm1_ratio((2 - b) / 2 * u)).mean(-1)
