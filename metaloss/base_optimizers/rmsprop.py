"""RMSprop (Hinton, 2012, lecture 6e), centered (Graves, 2013, eqs. 38-41), with momentum."""

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
)
from metaloss.config.arguments import NonNegativeFloat, PositiveFloat


@BASE_OPTIMIZERS.register("rmsprop")
def rmsprop(
    parameters: Iterable[Tensor],
    lr: PositiveFloat = 1e-2,
    alpha: NonNegativeFloat = 0.99,
    eps: NonNegativeFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    momentum: NonNegativeFloat = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> torch.optim.RMSprop:
    """RMSprop, centered and with momentum if asked for (torch.optim.RMSprop)."""
    return torch.optim.RMSprop(
        parameters,
        lr=lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
        maximize=maximize,
    )


@certify(torch.optim.RMSprop)
class RMSpropUpdate(QuotientUpdate):
    """q' = αq + (1-α)g̃²;  b' = μb + g̃/(√q' + ε);  θ' = θ - lr·b'.

    g̃ = ±g + λθ. Centered, q' - a'² stands for q', with a' = αa + (1-α)g̃.
    """

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        alpha = hyper["alpha"]
        grad = effective_gradient(theta, grad, hyper)
        square = alpha * state.get("square_avg", 0.0) + (1 - alpha) * grad * grad
        after = {"step": state.get("step", 0.0) + 1, "square_avg": square}
        if hyper["centered"]:
            mean = after["grad_avg"] = alpha * state.get("grad_avg", 0.0) + (1 - alpha) * grad
            square = square - mean * mean
        descent = grad / (root(square) + hyper["eps"])
        if hyper["momentum"] > 0:
            descent = hyper["momentum"] * state.get("momentum_buffer", 0.0) + descent
            after["momentum_buffer"] = descent
        return theta - hyper["lr"] * descent, after

    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        later = 1 - step.hyper["alpha"]
        squares = means(step, "square_avg")
        slope = list(torch._foreach_mul(grad, later))
        if step.hyper["centered"]:
            averages = means(step, "grad_avg")
            squares = list(torch._foreach_addcmul(squares, averages, averages, value=-1))
            torch._foreach_sub_(slope, torch._foreach_mul(averages, later))
        values = roots(squares)
        torch._foreach_div_(slope, values)
        torch._foreach_add_(values, step.hyper["eps"])
        return Quotient(
            factor=[1.0] * len(grad),
            numerator=grad,
            numerator_slope=[1.0] * len(grad),
            denominator=values,
            denominator_slope=slope,
        )

    def direction(self, step: GroupStep) -> list[Tensor | None]:
        if step.hyper["momentum"] > 0:
            return list(torch._foreach_neg(means(step, "momentum_buffer")))
        return super().direction(step)
