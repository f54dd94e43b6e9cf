"""Stochastic gradient descent, with every option of torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from metaloss.base_optimizers.base import (
    BASE_OPTIMIZERS,
    GroupStep,
    Hyperparameters,
    State,
    Update,
    certify,
)
from metaloss.base_optimizers.parts.quotient import effective_gradient, effective_gradients
from metaloss.config.arguments import NonNegativeFloat, PositiveFloat
from metaloss.errors import ArgumentError


@BASE_OPTIMIZERS.register("sgd")
def sgd(
    parameters: Iterable[Tensor],
    lr: PositiveFloat,
    momentum: NonNegativeFloat = 0.0,
    dampening: float = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> torch.optim.SGD:
    """SGD with momentum, Nesterov momentum and weight decay (torch.optim.SGD)."""
    if nesterov and (momentum == 0 or dampening != 0):
        raise ArgumentError("nesterov", nesterov, "a momentum with it, and no dampening")
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        maximize=maximize,
    )


@certify(torch.optim.SGD)
class SGDUpdate(Update):
    """g̃ = ±g + λθ;  b' = μb + (1-τ)g̃, at first b' = g̃;  θ' = θ - lr·(b' or g̃ + μb' or g̃)."""

    linear = True
    closed_form = True
    recordable = True

    def step(
        self, theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
    ) -> tuple[Tensor, State]:
        grad = effective_gradient(theta, grad, hyper)
        if hyper["momentum"] == 0:
            return theta - hyper["lr"] * grad, state
        buffer = state.get("momentum_buffer")
        if buffer is None:
            buffer = grad  # torch skips the dampening of the first step
        else:
            buffer = hyper["momentum"] * buffer + (1 - hyper["dampening"]) * grad
        descent = grad + hyper["momentum"] * buffer if hyper["nesterov"] else buffer
        return theta - hyper["lr"] * descent, {"momentum_buffer": buffer}

    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor | None]:
        return list(torch._foreach_mul(v, self._scales(step)))

    def scale(self, step: GroupStep) -> float | None:
        scales = set(self._scales(step))
        return scales.pop() if len(scales) == 1 else None

    def _scales(self, step: GroupStep) -> list[float]:
        """∂θ'/∂g of each parameter: a number."""
        hyper = step.hyper
        scale = hyper["lr"] if hyper["maximize"] else -hyper["lr"]
        if hyper["momentum"] == 0:
            return [scale] * len(step.first)
        later = 1 - hyper["dampening"]
        if hyper["nesterov"]:
            scale = scale * (1 + hyper["momentum"])  # torch allows no dampening here
        return [scale * (1.0 if first else later) for first in step.first]

    def direction(self, step: GroupStep) -> list[Tensor | None]:
        momentum = step.hyper["momentum"]
        if momentum == 0:
            return list(torch._foreach_neg(effective_gradients(step)))
        descent = [state["momentum_buffer"] for state in step.state]
        if step.hyper["nesterov"]:
            buffers = torch._foreach_mul(descent, momentum)
            descent = list(torch._foreach_add(effective_gradients(step), buffers))
        return list(torch._foreach_neg(descent))
