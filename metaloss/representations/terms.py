"""A loss as a short formula: a weighted sum of terms in prediction and target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metaloss.config.arguments import FiniteFloat
from metaloss.errors import ArgumentError
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import expressions


@REPRESENTATIONS.register("terms")
class Terms(Representation):
    """Σ c_k t_k(f, y), the mean over the outputs; the weights c are φ.

    What `tools/distill.py` makes of a learned loss. By default the cross-entropy's term -y log f.

    Args:
        terms: such as "y*log(f)", "(1-y)*f^2" or "e^2" (e = f - y), see `parts.expressions`.
        coefficients: c at the start.

    Raises:
        ConfigError: a factor is unknown, there is no term, or not as many coefficients as terms.
    """

    pairs = "mean"
    linear_in = ("weights",)

    def __init__(
        self, terms: Sequence[str] = ("y*log(f)",), coefficients: Sequence[FiniteFloat] = (-1.0,)
    ) -> None:
        super().__init__()
        if not terms:
            raise ArgumentError("terms", terms, "at least one")
        if len(terms) != len(coefficients):
            raise ArgumentError("coefficients", coefficients, f"one for each of {len(terms)} terms")
        self.terms = tuple(terms)
        self.coefficients = tuple(coefficients)
        for term in terms:
            expressions.parse(term)
        self.weights = nn.Parameter(torch.tensor([float(c) for c in coefficients]))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        terms = [expressions.parse(term)(prediction, target) for term in self.terms]
        return (torch.stack(terms, dim=-1) * self.weights).sum(-1).mean(-1)

    def extra_repr(self) -> str:
        return expressions.as_text(self.terms, self.weights.tolist())
