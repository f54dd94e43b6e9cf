"""Adam (Kingma & Ba, 2015), with every option of torch.optim.Adam."""

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


@BASE_OPTIMIZERS.register("adam")
def adam(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
) -> torch.optim.Adam:
    """Adam; its weight decay is added to the gradient (torch.optim.Adam)."""
    return torch.optim.Adam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
    )


@certify(torch.optim.Adam)
class AdamUpdate(QuotientUpdate):
    """m' = β₁m + (1-β₁)g̃;  q' = β₂q + (1-β₂)g̃²;  θ' = θ - lr/c₁ · m' / (√(q'/c₂) + ε).

    c₁ = 1-β₁ᵗ and c₂ = 1-β₂ᵗ at step t, g̃ = ±g + λθ; AMSGrad puts the largest q' so far for q'.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["betas"]
        _, after = moments(theta, grad, state, hyper)
        time, square = after["step"], after["exp_avg_sq"]
        if hyper["amsgrad"]:
            largest = state.get("max_exp_avg_sq", torch.zeros_like(theta))
            square = after["max_exp_avg_sq"] = torch.maximum(largest, square)
        denominator = root(square) / (1 - beta2**time) ** 0.5 + hyper["eps"]
        lr = hyper["lr"] / (1 - beta1**time)
        return shrunk(theta, hyper) - lr * after["exp_avg"] / denominator, after

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        beta1, beta2 = step.hyper["betas"]
        time = times(step)
        bias2 = [(1 - beta2**t) ** 0.5 for t in time]
        amsgrad = step.hyper["amsgrad"]
        values = roots(means(step, "max_exp_avg_sq" if amsgrad else "exp_avg_sq"))
        slope = root_slopes(values, grad, beta2)
        if amsgrad:  # g has no part in an older maximum
            for value, state in zip(slope, step.state, strict=True):
                value.mul_(state["exp_avg_sq"] >= state["max_exp_avg_sq"])
        torch._foreach_add_(values, [step.hyper["eps"] * bias for bias in bias2])
        return Quotient(
            factor=[bias / (1 - beta1**t) for bias, t in zip(bias2, time, strict=True)],
            numerator=means(step, "exp_avg"),
            numerator_slope=[1 - beta1] * len(grad),
            denominator=values,  # √q' + ε√c₂
            denominator_slope=slope,
        )
