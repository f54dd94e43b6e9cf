"""PolyLoss: cross-entropy whose leading polynomial coefficients are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metaloss.config.arguments import PositiveInt, check
from metaloss.errors import ArgumentError
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth


@REPRESENTATIONS.register("poly")
class Poly(Representation):
    """-log p + Σⱼ εⱼ (1 - p)ʲ, j = 1..N, with learned εⱼ (PolyLoss; Leng et al., 2022, Poly-N).

    -log p = Σⱼ (1 - p)ʲ/j, so εⱼ shifts the coefficient of the j-th power, 1/j. It stays above
    -1/j, as softplus(rawⱼ) - 1/j: the loss falls with p whatever is learned. It starts as
    cross-entropy, ε = 0.

    Args:
        terms: N.
        epsilon: εⱼ at the start, above -1/j: N numbers, or one for all.

    Raises:
        ConfigError: an ε out of its range, or another number of them than `terms`.
    """

    classification_only = True
    pairs = "sum"

    def __init__(self, terms: PositiveInt = 1, epsilon: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        start = list(epsilon) if isinstance(epsilon, Sequence) else [epsilon] * terms
        if len(start) != terms:
            raise ArgumentError("epsilon", epsilon, f"{terms} numbers, or one for all")
        for j, value in enumerate(start, 1):
            check("epsilon", value, Annotated[float, Gt(-1 / j)])
        self.terms = terms
        self.epsilon = epsilon
        self.raw = nn.Parameter(
            torch.tensor([smooth.softplus_inverse(e + 1 / j) for j, e in enumerate(start, 1)])
        )

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        like = self.raw
        powers = torch.arange(1, self.terms + 1, dtype=like.dtype, device=like.device)  # [N]
        epsilon = nn.functional.softplus(self.raw) - 1 / powers
        shift = (1 - prediction)[..., None] ** powers @ epsilon  # [batch, C]
        return (target * (shift - smooth.log(prediction))).sum(-1)
