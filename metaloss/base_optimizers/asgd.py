"""ASGD: averaged SGD (Polyak & Juditsky, 1992), with every option of torch.optim.ASGD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.base import BASE_OPTIMIZERS, Hyperparameters, State, Update, certify
from metaloss.base_optimizers.parts.quotient import effective_gradient
from metaloss.config.arguments import NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("asgd")
def asgd(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: NonNegativeFloat = 0.0,
    maximize: bool = False,
) -> torch.optim.ASGD:
    """SGD with a decaying learning rate, and the average of θ beside it (torch.optim.ASGD)."""
    return torch.optim.ASGD(
        parameters,
        lr=lr,
        lambd=lambd,
        alpha=alpha,
        t0=t0,
        weight_decay=weight_decay,
        maximize=maximize,
    )


@certify(torch.optim.ASGD)
class ASGDUpdate(Update):
    """θ' = (1 - λη)θ - ηg̃;  a' = a + μ(θ' - a);  η' = lr/(1 + λ·lr·t)^α;  μ' = 1/max(1, t - t₀).

    g̃ = ±g + decay·θ, and η = lr at first: later, lr acts one step after it is set, by η'.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        lr, decay = hyper["lr"], hyper["lambd"]
        time = state.get("step", 0.0) + 1
        eta = state["eta"] if state else lr
        grad = effective_gradient(theta, grad, hyper)
        after = theta * (1 - decay * eta) - eta * grad
        average, weight = state.get("ax", 0.0), state.get("mu", 1.0)
        return after, {
            "step": time,
            "eta": lr / (1 + decay * lr * time) ** hyper["alpha"],
            "mu": 1 / max(1, time - hyper["t0"]),
            "ax": average + weight * (after - average),
        }
