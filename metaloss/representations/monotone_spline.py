"""A loss of any monotone shape: splines over [0, 1]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metaloss.config.arguments import PositiveInt
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth

FLAT = 0.01  #: slope at the start of what is flat in the known loss; softplus knows no 0


@REPRESENTATIONS.register("monotone_spline")
class MonotoneSpline(Representation):
    """Σᵢ yᵢ g₁(1 - fᵢ) + (1 - yᵢ) g₀(fᵢ) with two increasing splines g of an output's error.

    More error never costs less, whatever is learned, where the free network may bend back. Each g
    is a cubic B-spline (C², piecewise) whose slope Σⱼ dⱼ Bⱼ is a quadratic one with coefficients
    dⱼ = softplus(rawⱼ) > 0 (as the I-splines of Ramsay, 1988). Its knots lie the closer the larger
    the error, at 1 - ((n - i)/n)², for the steep end of cross-entropy. Not for regression, where
    errors have no bound.

    Args:
        intervals: n; each g has n + 2 parameters.
        start: "cross_entropy", of the target alone and with -log(f + 1/2n²) for -log f, as splines
            have no infinite slope; or "squared_error", Σᵢ (fᵢ - yᵢ)². Slopes start at 0.01 or more.

    Raises:
        ConfigError: `intervals` is below 1, or an unknown start.
    """

    classification_only = True
    pairs = "sum"

    def __init__(
        self,
        intervals: PositiveInt = 16,
        start: Literal["cross_entropy", "squared_error"] = "cross_entropy",
    ) -> None:
        super().__init__()
        self.intervals = intervals
        self.start = start
        self.raw = nn.Parameter(
            torch.tensor([[smooth.softplus_inverse(d) for d in row] for row in self._slopes()])
        )

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        others, own = self._spline(prediction, 0), self._spline(1 - prediction, 1)
        return (target * own + (1 - target) * others).sum(-1)

    def _spline(self, error: Tensor, which: int) -> Tensor:
        """g₀ or g₁, shaped like the error."""
        knots = self._knots(self.raw)
        widths = (knots[4:-1] - knots[1:-4]) / 3
        rises = nn.functional.softplus(self.raw[which]) * widths
        return _basis(error, knots)[..., 1:] @ rises.cumsum(0)  # its first coefficient is 0

    def _slopes(self) -> list[list[float]]:
        """d of g₀ and g₁ at the start: they meet the known slopes at as many points."""
        knots = self._knots(torch.zeros((), dtype=torch.float64))
        error = ((knots[2:-3] + knots[3:-2]) / 2).clamp(0, 1)  # where the B-splines are (Greville)
        if self.start == "squared_error":
            slopes = [2 * error, 2 * error]
        else:
            slopes = [torch.zeros_like(error), 1 / (1 - error + 0.5 / self.intervals**2)]
        basis = _basis(error, knots[1:-1], degree=2)
        fitted: Tensor = torch.linalg.solve(basis, torch.stack(slopes, dim=1))
        return fitted.T.clamp_min(FLAT).tolist()

    def _knots(self, like: Tensor) -> Tensor:
        """n + 7 knots of n + 3 cubic B-splines; the first and last three lie outside of [0, 1]."""
        n = self.intervals
        left = torch.arange(n + 3, -4, -1, dtype=like.dtype, device=like.device) / n
        return 1 - left * left.abs()


def _basis(x: Tensor, knots: Tensor, degree: int = 3) -> Tensor:
    """The B-splines at x, [..., len(knots) - degree - 1] (the recursion of Cox and de Boor)."""
    x = x[..., None]
    basis = ((knots[:-1] <= x) & (x < knots[1:])).to(x.dtype)
    for p in range(1, degree + 1):
        rising = (x - knots[: -p - 1]) / (knots[p:-1] - knots[: -p - 1])
        falling = (knots[p + 1 :] - x) / (knots[p + 1 :] - knots[1:-p])
        basis = rising * basis[..., :-1] + falling * basis[..., 1:]
    return basis
