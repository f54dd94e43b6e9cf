"""RAdam: Adam with a rectified variance (Liu et al., 2020), every option of torch.optim.RAdam."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.base import (
    BASE_OPTIMIZERS,
    GroupStep,
    Hyperparameters,
    State,
    certify,
)
from metaloss.base_optimizers.parts.quotient import (
    Quotient,
    QuotientUpdate,
    means,
    moments,
    root,
    root_slopes,
    roots,
    shrunk,
    times,
)
from metaloss.config.arguments import Decay, NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("radam")
def radam(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> torch.optim.RAdam:
    """RAdam; its weight decay is added to the gradient, or decoupled (torch.optim.RAdam)."""
    return torch.optim.RAdam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        maximize=maximize,
    )


@certify(torch.optim.RAdam)
class RAdamUpdate(QuotientUpdate):
    """θ' = θ - lr/c₁ · m' · rₜ√c₂/(√q' + ε), and θ - lr/c₁ · m' in the first steps, where ρₜ ≤ 5.

    m', q', c₁ and c₂ as in Adam; rₜ² = (ρₜ-4)(ρₜ-2)ρ/((ρ-4)(ρ-2)ρₜ) with ρ = 2/(1-β₂) - 1 and
    ρₜ = ρ - 2tβ₂ᵗ/c₂.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["betas"]
        _, after = moments(theta, grad, state, hyper)
        time, square = after["step"], after["exp_avg_sq"]
        rectified = _rectification(time, beta2)
        denominator = 1.0 if rectified is None else (root(square) + hyper["eps"]) / rectified
        lr = hyper["lr"] / (1 - beta1**time)
        return shrunk(theta, hyper) - lr * after["exp_avg"] / denominator, after

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        beta1, beta2 = step.hyper["betas"]
        time = times(step)
        rectified = [_rectification(t, beta2) for t in time]
        values = roots(means(step, "exp_avg_sq"))
        slope = root_slopes(values, grad, beta2)
        torch._foreach_add_(values, step.hyper["eps"])
        for k, r in enumerate(rectified):
            if r is None:
                values[k].fill_(1.0)
                slope[k].zero_()
        return Quotient(
            factor=[(r or 1.0) / (1 - beta1**t) for r, t in zip(rectified, time, strict=True)],
            numerator=means(step, "exp_avg"),
            numerator_slope=[1 - beta1] * len(grad),
            denominator=values,  # √q' + ε, or 1
            denominator_slope=slope,
        )


def _rectification(time: float, beta2: float) -> float | None:
    """rₜ√c₂; None where the variance is not tractable yet (ρₜ ≤ 5)."""
    bias = 1 - beta2**time
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * time * beta2**time / bias
    if length <= 5:
        return None
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return (ratio * bias) ** 0.5
