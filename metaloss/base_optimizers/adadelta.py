"""Adadelta (Zeiler, 2012), with every option of torch.optim.Adadelta."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.base import BASE_OPTIMIZERS, Hyperparameters, State, Update, certify
from metaloss.base_optimizers.parts.quotient import effective_gradient
from metaloss.config.arguments import NonNegativeFloat, PositiveFloat, Probability


@BASE_OPTIMIZERS.register("adadelta")
def adadelta(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1.0,
    rho: Probability = 0.9,
    eps: NonNegativeFloat = 1e-6,
    weight_decay: NonNegativeFloat = 0.0,
    maximize: bool = False,
) -> torch.optim.Adadelta:
    """Adadelta (torch.optim.Adadelta)."""
    return torch.optim.Adadelta(
        parameters,
        lr=lr,
        rho=rho,
        eps=eps,
        weight_decay=weight_decay,
        maximize=maximize,
    )


@certify(torch.optim.Adadelta)
class AdadeltaUpdate(Update):
    """q' = ρq + (1-ρ)g̃²;  δ = g̃·√(a + ε)/√(q' + ε);  a' = ρa + (1-ρ)δ²;  θ' = θ - lr·δ.

    g̃ = ±g + λθ. The derivatives are taken by autograd: δ is not kept by torch.optim.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        rho, eps = hyper["rho"], hyper["eps"]
        grad = effective_gradient(theta, grad, hyper)
        square = rho * state.get("square_avg", 0.0) + (1 - rho) * grad * grad
        earlier = state.get("acc_delta", torch.zeros_like(theta))
        delta = (earlier + eps).sqrt() / (square + eps).sqrt() * grad
        return theta - hyper["lr"] * delta, {
            "step": state.get("step", 0.0) + 1,
            "square_avg": square,
            "acc_delta": rho * earlier + (1 - rho) * delta * delta,
        }
