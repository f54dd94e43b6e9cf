"""NAdam: Adam with Nesterov momentum (Dozat, 2016), with every option of torch.optim.NAdam."""

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


@BASE_OPTIMIZERS.register("nadam")
def nadam(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 2e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    momentum_decay: NonNegativeFloat = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> torch.optim.NAdam:
    """NAdam; its weight decay is added to the gradient, or decoupled (torch.optim.NAdam)."""
    return torch.optim.NAdam(
        parameters,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        maximize=maximize,
    )


@certify(torch.optim.NAdam)
class NAdamUpdate(QuotientUpdate):
    """θ' = θ - lr · [(1-μₜ)/(1-Πₜ) g̃ + μₜ₊₁/(1-Πₜμₜ₊₁) m'] / (√(q'/c₂) + ε).

    m', q', c₂ and g̃ as in Adam; μₜ = β₁(1 - ½·0.96^(tψ)) with momentum_decay ψ; Πₜ = μ₁⋯μₜ.
    """

    counters = ("step", "mu_product")

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        grad, after = moments(theta, grad, state, hyper)
        time, square = after["step"], after["exp_avg_sq"]
        product = after["mu_product"] = state.get("mu_product", 1.0) * _momentum(time, hyper)
        of_grad, of_moment = _weights(time, product, hyper)
        denominator = root(square) / (1 - hyper["betas"][1] ** time) ** 0.5 + hyper["eps"]
        descent = (of_grad * grad + of_moment * after["exp_avg"]) / denominator
        return shrunk(theta, hyper) - hyper["lr"] * descent, after

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        beta1, beta2 = step.hyper["betas"]
        time, products = times(step), torch.stack(means(step, "mu_product")).tolist()
        pairs = [_weights(t, p, step.hyper) for t, p in zip(time, products, strict=True)]
        bias2 = [(1 - beta2**t) ** 0.5 for t in time]
        numerator = torch._foreach_mul(means(step, "exp_avg"), [later for _, later in pairs])
        torch._foreach_add_(numerator, torch._foreach_mul(grad, [now for now, _ in pairs]))
        values = roots(means(step, "exp_avg_sq"))
        slope = root_slopes(values, grad, beta2)
        torch._foreach_add_(values, [step.hyper["eps"] * bias for bias in bias2])
        return Quotient(
            factor=bias2,
            numerator=list(numerator),
            numerator_slope=[now + (1 - beta1) * later for now, later in pairs],
            denominator=values,  # √q' + ε√c₂
            denominator_slope=slope,
        )


def _momentum(time: float, hyper: Hyperparameters) -> float:
    """μₜ."""
    return hyper["betas"][0] * (1 - 0.5 * 0.96 ** (time * hyper["momentum_decay"]))


def _weights(time: float, product: float, hyper: Hyperparameters) -> tuple[float, float]:
    """Those of g̃ and m' in the step, from t and Πₜ."""
    later = _momentum(time + 1, hyper)
    return (1 - _momentum(time, hyper)) / (1 - product), later / (1 - product * later)
