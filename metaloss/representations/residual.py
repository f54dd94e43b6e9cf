"""A known loss plus a learned correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metaloss.config.arguments import FiniteFloat
from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("residual")
class Residual(Representation):
    """M = ℓ + s·c: a known loss ℓ, and another representation c that corrects it by a learned s.

    With s = 0 at the start M is ℓ exactly, and s learns first (as the gates of ReZero; Bachlechner
    et al., 2021).

    Args:
        base: the name of ℓ's representation: "cross_entropy", or "squared_error" for regression.
        correction: the name of c's.
        settings: arguments of c's constructor, beyond the defaults.
        factor: s at the start.

    Raises:
        UnknownComponentError: no representation has such a name.
        ConfigError: `factor` is no number.
    """

    def __init__(
        self,
        base: str = "cross_entropy",
        correction: str = "nn",
        settings: dict[str, Any] | None = None,
        factor: FiniteFloat = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.correction = correction
        self.settings = dict(settings or {})
        self.factor = factor
        self.known = REPRESENTATIONS.build(base)
        self.learned = REPRESENTATIONS.build(correction, self.settings)
        self.scale = nn.Parameter(torch.tensor(float(factor)))

    @property
    def of_pairs(self) -> bool:
        return self.known.of_pairs and self.learned.of_pairs

    def pair_losses(self, prediction: Tensor, target: Tensor, outputs: int) -> Tensor:
        correction = self.learned.pair_losses(prediction, target, outputs)
        return self.known.pair_losses(prediction, target, outputs) + self.scale * correction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        correction = self.learned(prediction, target)
        return self.known(prediction, target) + self.scale * correction
