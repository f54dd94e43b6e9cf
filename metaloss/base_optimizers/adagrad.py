"""Adagrad (Duchi, Hazan & Singer, 2011), with every option of torch.optim.Adagrad."""

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
    root,
    roots,
    times,
)
from metaloss.config.arguments import NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("adagrad")
def adagrad(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-2,
    lr_decay: NonNegativeFloat = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    initial_accumulator_value: NonNegativeFloat = 0.0,
    eps: NonNegativeFloat = 1e-10,
    maximize: bool = False,
) -> torch.optim.Adagrad:
    """Adagrad, its learning rate decayed if asked for (torch.optim.Adagrad)."""
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

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        values = roots(means(step, "sum"))
        slope = list(torch._foreach_div(grad, values))
        torch._foreach_add_(values, step.hyper["eps"])
        return Quotient(
            factor=[1 / (1 + (t - 1) * step.hyper["lr_decay"]) for t in times(step)],
            numerator=grad,
            numerator_slope=[1.0] * len(grad),
            denominator=values,
            denominator_slope=slope,
        )
