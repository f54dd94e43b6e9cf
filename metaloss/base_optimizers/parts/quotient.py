"""What the steps of the adaptive optimizers share: they go along a quotient of running means."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from metaloss.base_optimizers.base import GroupStep, Hyperparameters, State, Update


@dataclass(frozen=True)
class Quotient:
    """N/D of a group's parameters, with its slopes in g̃; the lists are aligned."""

    factor: list[float]  #: c
    numerator: list[Tensor]  #: N
    numerator_slope: list[float]  #: dN/dg̃
    denominator: list[Tensor]  #: D, nowhere 0
    denominator_slope: list[Tensor]  #: dD/dg̃, in tensors of its own; 0 where gradients are all 0


class QuotientUpdate(Update):
    """θ' = θ - lr·c·N/D, elementwise, and its derivatives in closed form.

        ∂θ'/∂g̃ = -lr·c·(dN/dg̃ - N/D·dD/dg̃)/D,    ∂θ'/∂lr = -c·N/D - λθ,

    where g̃ = ±g + λθ is the effective gradient; a decoupled weight decay shrinks θ to (1 - lr·λ)θ
    instead. Each operation is one call for all parameters of the group.
    """

    closed_form = True

    @abstractmethod
    def quotient(self, step: GroupStep, grad: list[Tensor]) -> Quotient:
        """From what is there after the step; `grad` is g̃."""

    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor | None]:
        quotient = self.quotient(step, effective_gradients(step))
        lr = -step.hyper["lr"] if step.hyper["maximize"] else step.hyper["lr"]
        u = quotient.denominator_slope
        torch._foreach_mul_(u, quotient.numerator)
        torch._foreach_div_(u, quotient.denominator)
        torch._foreach_sub_(u, quotient.numerator_slope)
        torch._foreach_div_(u, quotient.denominator)
        torch._foreach_mul_(u, v)
        torch._foreach_mul_(u, [lr * c for c in quotient.factor])
        return list(u)

    def direction(self, step: GroupStep) -> list[Tensor | None]:
        quotient = self.quotient(step, effective_gradients(step))
        directions = torch._foreach_div(quotient.numerator, quotient.denominator)
        torch._foreach_mul_(directions, [-c for c in quotient.factor])
        if decoupled(step.hyper):
            torch._foreach_sub_(
                directions, torch._foreach_mul(step.theta, step.hyper["weight_decay"])
            )
        return list(directions)


def decoupled(hyper: Hyperparameters) -> bool:
    """Whether the weight decay shrinks θ by itself (AdamW) or enters through the gradient."""
    return bool(hyper.get("decoupled_weight_decay", False))


def shrunk(theta: Tensor, hyper: Hyperparameters) -> Tensor:
    """θ after a decoupled weight decay (Loshchilov & Hutter, 2019)."""
    if hyper["weight_decay"] == 0 or not decoupled(hyper):
        return theta
    return theta * (1 - hyper["lr"] * hyper["weight_decay"])


def effective_gradient(theta: Tensor, grad: Tensor, hyper: Hyperparameters) -> Tensor:
    """g̃ = ±g + λθ; without λθ where the weight decay is decoupled."""
    grad = -grad if hyper["maximize"] else grad
    if hyper["weight_decay"] == 0 or decoupled(hyper):
        return grad
    return grad.add(theta, alpha=hyper["weight_decay"])


def effective_gradients(step: GroupStep) -> list[Tensor]:
    """g̃ of every parameter."""
    hyper = step.hyper
    grad = list(torch._foreach_neg(step.grad)) if hyper["maximize"] else step.grad
    if hyper["weight_decay"] == 0 or decoupled(hyper):
        return grad
    return list(torch._foreach_add(grad, step.theta, alpha=hyper["weight_decay"]))


def moments(
    theta: Tensor, grad: Tensor, state: State, hyper: Hyperparameters
) -> tuple[Tensor, State]:
    """g̃, and Adam's state after the step: t, m' = β₁m + (1-β₁)g̃, q' = β₂q + (1-β₂)g̃²."""
    beta1, beta2 = hyper["betas"]
    grad = effective_gradient(theta, grad, hyper)
    return grad, {
        "step": state.get("step", 0.0) + 1,
        "exp_avg": beta1 * state.get("exp_avg", 0.0) + (1 - beta1) * grad,
        "exp_avg_sq": beta2 * state.get("exp_avg_sq", 0.0) + (1 - beta2) * grad * grad,
    }


def root(square: Tensor) -> Tensor:
    """√q', without a derivative at 0.

    q' is 0 where g and all gradients before it were 0, and the root has no derivative there; what
    is added to q' by g has none either.
    """
    zero = square == 0
    return torch.where(zero, 1.0, square).sqrt().masked_fill(zero, 0.0)


def roots(squares: list[Tensor]) -> list[Tensor]:
    """√q' of every parameter, at least the root of the smallest positive number.

    No root but 0 is changed by that, and what is 0/0 in a derivative is 0.
    """
    values = torch._foreach_sqrt(squares)
    limits = [torch.finfo(square.dtype) for square in squares]
    torch._foreach_clamp_min_(values, [(limit.tiny * limit.eps) ** 0.5 for limit in limits])
    return list(values)


def root_slopes(values: list[Tensor], grad: list[Tensor], beta2: float) -> list[Tensor]:
    """∂√q'/∂g̃ = (1-β₂)g̃/√q' of every parameter, from `roots`; in tensors of their own."""
    slopes = torch._foreach_div(grad, values)
    torch._foreach_mul_(slopes, 1 - beta2)
    return list(slopes)


def means(step: GroupStep, name: str) -> list[Tensor]:
    """A tensor of the state after the step, of every parameter."""
    return [state[name] for state in step.state]


def times(step: GroupStep) -> list[float]:
    """t, the number of steps that each parameter has made; one read, wherever it is kept."""
    return torch.stack(means(step, "step")).tolist()
