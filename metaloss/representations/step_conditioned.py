"""A loss that sees how far the training is."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaloss.config.arguments import PositiveInt
from metaloss.errors import ArgumentError, InputError
from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("step_conditioned")
class StepConditioned(Representation):
    """Another representation ℓ whose parameters are polynomials of the training's progress τ.

    φ(τ) = φ₀ + φ₁τ + ... + φ_d τᵈ with τ = base steps made / base steps of the training, in [0, 1].
    It starts as ℓ, φ₁ = ... = 0; in the offline initialisation, where θ is always at its start, τ
    is 0 and φ₀ learns alone. τ is told by the learner (`Representation.observe`) and saved with φ.

    Args:
        of: the name of ℓ's representation.
        settings: arguments of its constructor, beyond the defaults.
        degree: d.

    Raises:
        UnknownComponentError: no representation has this name.
        ConfigError: `degree` is below 1, or ℓ has no parameters.
    """

    def __init__(
        self, of: str = "nn", settings: dict[str, Any] | None = None, degree: PositiveInt = 1
    ) -> None:
        super().__init__()
        self.of = of
        self.settings = dict(settings or {})
        self.degree = degree
        self.loss = REPRESENTATIONS.build(of, self.settings)
        #: φ₁, ..., φ_d of each parameter of ℓ, stacked.
        self.changes = nn.ParameterList(
            torch.zeros(degree, *p.shape, dtype=p.dtype) for p in self.loss.parameters()
        )
        if not self.changes:
            raise ArgumentError("of", of, "a loss that has parameters to change")
        self.steps: Tensor  # of the training; 0: nobody told
        self.progress: Tensor  # τ
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros(()))

    def observe(self, step: int, steps: int | None) -> None:
        super().observe(step, steps)
        total = int(self.steps) if steps is None else max(steps, 1)
        if total == 0:
            raise InputError(
                "representations.step_conditioned looks at the progress of the training: tell how "
                "many base steps it has, AdaLFL(..., steps=...)"
            )
        self.steps.fill_(total)
        self.progress.fill_(min(step / total, 1.0))

    @property
    def pairs(self) -> Literal["mean", "sum"] | None:  # type: ignore[override]
        return self.loss.pairs

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        tau = self.progress
        exponents = torch.arange(1, self.degree + 1, dtype=tau.dtype, device=tau.device)
        powers = tau**exponents  # [d]
        phi = {
            name: start + torch.tensordot(powers, change, 1)
            for (name, start), change in zip(
                self.loss.named_parameters(), self.changes, strict=True
            )
        }
        return functional_call(self.loss, phi, (prediction, target))
