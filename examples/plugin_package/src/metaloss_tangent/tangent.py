"""The tangent loss with a learned margin."""

import math

import torch
from torch import Tensor, nn

from metaloss.config.arguments import PositiveFloat
from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("tangent")
class Tangent(Representation):
    """(2 arctan(s·m) - 1)² of the margin m, with a learned s > 0 (Masnadi-Shirazi et al., 2010).

    m = 2 Σᵢ yᵢ fᵢ - 1 is between -1, surely wrong, and 1. The loss is bounded, so that mislabelled
    examples cannot dominate, and least at s·m = tan ½: it punishes what is right by too much.

    Args:
        scale: s at the start; with 0.55 the minimum is at m = 0.99.
    """

    classification_only = True

    def __init__(self, scale: PositiveFloat = 0.55) -> None:
        super().__init__()
        self.scale = scale
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        margin = 2 * (prediction * target).sum(-1) - 1
        return (2 * (self.log_scale.exp() * margin).arctan() - 1).square()
