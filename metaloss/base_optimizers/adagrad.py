"""Adagrad (Duchi, Hazan & Singer, 2011), with every option of torch.optim.Adagrad."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss import checks
from metaloss.base_optimizers.base import BASE_OPTIMIZERS
from metaloss.base_optimizers.quotient import QuotientUpdate, effective_gradient, root, roots, times
from metaloss.update import GroupStep, Hyperparameters, State, certify


@BASE_OPTIMIZERS.register("adagrad")
def adagrad(
    parameters: Iterable[Tensor],
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> torch.optim.Adagrad:
    """Adagrad, its learning rate decayed if asked for (torch.optim.Adagrad)."""
    checks.number(lr, "base_optimizers.adagrad.lr")
    return torch.optim.Adagrad(
        parameters,
        lr=lr,
        lr_decay=lr_decay,
        weight_decay=weight_decay,
        initial_accumulator_value=initial_accumulator_value,
        eps=eps,
        maximize=maximize,
    )


@certify(torch.optim.Adagrad)
class AdagradUpdate(QuotientUpdate):
    """q' = q + g̃²;  θ' = θ - lr/(1 + (t-1)η) · g̃/(√q' + ε), with g̃ = ±g + λθ and lr_decay η."""

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        time = state.get("step", 0.0) + 1
        grad = effective_gradient(theta, grad, hyper)
        earlier = state["sum"] if state else hyper["initial_accumulator_value"]
        square = earlier + grad * grad
        lr = hyper["lr"] / (1 + (time - 1) * hyper["lr_decay"])
        return theta - lr * grad / (root(square) + hyper["eps"]), {"step": time, "sum": square}

    def initial_state(self, theta: Tensor, hyper: Hyperparameters) -> State:
        fused = bool(hyper["fused"])
        time = torch.zeros(
            (), dtype=torch.float32 if fused else None, device=theta.device if fused else "cpu"
        )
        start = torch.full_like(theta, hyper["initial_accumulator_value"], requires_grad=False)
        return {"step": time, "sum": start}

    def numerator(self, step: GroupStep, grad: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        return grad, [1.0] * len(grad)

    def denominator(self, step: GroupStep) -> list[Tensor]:
        values = roots([state["sum"] for state in step.state])
        torch._foreach_add_(values, step.hyper["eps"])
        return values

    def denominator_slope(self, step: GroupStep, grad: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_div(grad, roots([state["sum"] for state in step.state])))

    def factor(self, step: GroupStep) -> list[float]:
        return [1 / (1 + (time - 1) * step.hyper["lr_decay"]) for time in times(step)]
