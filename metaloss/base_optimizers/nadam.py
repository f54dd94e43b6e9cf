"""NAdam: Adam with Nesterov momentum (Dozat, 2016), with every option of torch.optim.NAdam."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss import checks
from metaloss.base_optimizers.base import BASE_OPTIMIZERS
from metaloss.base_optimizers.quotient import (
    QuotientUpdate,
    effective_gradient,
    root,
    roots,
    shrunk,
    times,
)
from metaloss.update import GroupStep, Hyperparameters, State, certify


@BASE_OPTIMIZERS.register("nadam")
def nadam(
    parameters: Iterable[Tensor],
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> torch.optim.NAdam:
    """NAdam; its weight decay is added to the gradient, or decoupled (torch.optim.NAdam)."""
    checks.number(lr, "base_optimizers.nadam.lr")
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
        beta1, beta2 = hyper["betas"]
        time = state.get("step", 0.0) + 1
        grad = effective_gradient(theta, grad, hyper)
        moment = beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad
        square = beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * grad * grad
        product = state.get("mu_product", 1.0) * _momentum(time, hyper)
        of_grad, of_moment = _weights(time, product, hyper)
        denominator = root(square) / (1 - beta2**time) ** 0.5 + hyper["eps"]
        descent = (of_grad * grad + of_moment * moment) / denominator
        after = {"step": time, "mu_product": product, "exp_avg": moment, "exp_avg_sq": square}
        return shrunk(theta, hyper) - hyper["lr"] * descent, after

    def numerator(self, step: GroupStep, grad: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        weights = self._weights(step)
        moments = [state["exp_avg"] for state in step.state]
        numerator = torch._foreach_mul(grad, [of_grad for of_grad, _ in weights])
        torch._foreach_add_(
            numerator, torch._foreach_mul(moments, [of_moment for _, of_moment in weights])
        )
        later = 1 - step.hyper["betas"][0]
        return list(numerator), [of_grad + later * of_moment for of_grad, of_moment in weights]

    def denominator(self, step: GroupStep) -> list[Tensor]:
        values = roots([state["exp_avg_sq"] for state in step.state])
        beta2 = step.hyper["betas"][1]
        torch._foreach_mul_(values, [(1 - beta2**time) ** -0.5 for time in times(step)])
        torch._foreach_add_(values, step.hyper["eps"])
        return values

    def denominator_slope(self, step: GroupStep, grad: list[Tensor]) -> list[Tensor]:
        beta2 = step.hyper["betas"][1]
        slope = torch._foreach_div(grad, roots([state["exp_avg_sq"] for state in step.state]))
        torch._foreach_mul_(
            slope, [(1 - beta2) * (1 - beta2**time) ** -0.5 for time in times(step)]
        )
        return list(slope)

    def factor(self, step: GroupStep) -> list[float]:
        return [1.0] * len(step.theta)

    def _weights(self, step: GroupStep) -> list[tuple[float, float]]:
        products = torch.stack([state["mu_product"] for state in step.state]).tolist()
        return [
            _weights(time, product, step.hyper)
            for time, product in zip(times(step), products, strict=True)
        ]


def _momentum(time: float, hyper: Hyperparameters) -> float:
    """μₜ."""
    return hyper["betas"][0] * (1 - 0.5 * 0.96 ** (time * hyper["momentum_decay"]))


def _weights(time: float, product: float, hyper: Hyperparameters) -> tuple[float, float]:
    """Those of g̃ and m' in the step, from t and Πₜ."""
    later = _momentum(time + 1, hyper)
    return (1 - _momentum(time, hyper)) / (1 - product), later / (1 - product * later)
