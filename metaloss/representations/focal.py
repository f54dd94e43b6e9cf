"""The focal loss with a learned focus and scale."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metaloss.config.arguments import PositiveFloat
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth


@REPRESENTATIONS.register("focal")
class Focal(Representation):
    """-α (1 - p)^γ log p with learned γ and α (Lin et al., 2017, eq. 5, one α for all classes).

    γ > 0 looks away from easy examples, γ < 0 towards them. γ = softplus(raw) - 1 stays above -1,
    where the loss falls with p, and α = e^(log α) above 0. Finite with its derivatives at p = 0 and
    p = 1. It starts as cross-entropy, γ = 0 and α = 1; the authors' γ is 2.

    Args:
        gamma: γ at the start, above -1.
        alpha: α at the start, above 0.

    Raises:
        ConfigError: a number out of its range.
    """

    classification_only = True
    pairs = "sum"

    def __init__(self, gamma: Annotated[float, Gt(-1)] = 0.0, alpha: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.raw_gamma = nn.Parameter(torch.tensor(smooth.softplus_inverse(gamma + 1)))
        self.log_alpha = nn.Parameter(torch.tensor(math.log(alpha)))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        gamma = nn.functional.softplus(self.raw_gamma) - 1
        missing = 1 - prediction + torch.finfo(prediction.dtype).eps  # 0^γ has no slope
        losses = -(missing**gamma) * smooth.log(prediction)
        return self.log_alpha.exp() * (target * losses).sum(-1)
