"""Adamax (Kingma & Ba, 2015, section 7.1), with every option of torch.optim.Adamax."""

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
    effective_gradient,
    means,
    times,
)
from metaloss.config.arguments import Decay, NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("adamax")
def adamax(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 2e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    maximize: bool = False,
) -> torch.optim.Adamax:
    """Adamax: Adam with an infinity norm (torch.optim.Adamax)."""
    return torch.optim.Adamax(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        maximize=maximize,
    )


@certify(torch.optim.Adamax)
class AdamaxUpdate(QuotientUpdate):
    """m' = β₁m + (1-β₁)g̃;  n' = max(β₂n, |g̃| + ε);  θ' = θ - lr/(1-β₁ᵗ) · m'/n'.

    g̃ = ±g + λθ. n' depends on g̃ by its sign where |g̃| + ε is the larger, and else not.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["betas"]
        time = state.get("step", 0.0) + 1
        grad = effective_gradient(theta, grad, hyper)
        moment = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad
        earlier = beta2 * state.get("exp_inf", torch.zeros_like(theta))
        norm = torch.maximum(earlier, grad.abs() + hyper["eps"])
        lr = hyper["lr"] / (1 - beta1**time)
        return theta - lr * moment / norm, {"step": time, "exp_avg": moment, "exp_inf": norm}

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        beta1 = step.hyper["betas"][0]
        norms = means(step, "exp_inf")
        sizes = torch._foreach_abs(grad)
        torch._foreach_add_(sizes, step.hyper["eps"])
        # n' is one of the two; up to the rounding of torch's own computation of it.
        torch._foreach_mul_(sizes, [1 + 4 * torch.finfo(size.dtype).eps for size in sizes])
        slope = torch._foreach_sign(grad)
        for value, size, norm in zip(slope, sizes, norms, strict=True):
            value.mul_(size >= norm)
        return Quotient(
            factor=[1 / (1 - beta1**t) for t in times(step)],
            numerator=means(step, "exp_avg"),
            numerator_slope=[1 - beta1] * len(grad),
            denominator=norms,
            denominator_slope=list(slope),
        )
