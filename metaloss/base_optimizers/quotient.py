"""What the steps of the adaptive optimizers share: they go along a quotient of running means."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from metaloss.update import GroupStep, Hyperparameters, Update


class QuotientUpdate(Update):
    """θ' = θ - lr·c·N/D, elementwise, and its derivatives in closed form.

        ∂θ'/∂g̃ = -lr·c·(N_g - N·D_g/D)/D,    ∂θ'/∂lr = -c·N/D - λθ,

    where N_g and D_g are derivatives in the effective gradient g̃ = ±g + λθ; a decoupled weight
    decay shrinks θ to (1 - lr·λ)θ instead. Lists are aligned with the parameters of the group, and
    each operation is one call for all of them.
    """

    closed_form = True

    @abstractmethod
    def numerator(self, step: GroupStep, grad: list[Tensor]) -> tuple[list[Tensor], list[float]]:
        """N and N_g, where `grad` is g̃."""

    @abstractmethod
    def denominator(self, step: GroupStep) -> list[Tensor]:
        """D, nowhere 0."""

    @abstractmethod
    def denominator_slope(self, step: GroupStep, grad: list[Tensor]) -> list[Tensor]:
        """D_g, in tensors of its own; finite where a gradient is exactly zero."""

    @abstractmethod
    def factor(self, step: GroupStep) -> list[float]:
        """c."""

    def cotangent(self, step: GroupStep, v: list[Tensor]) -> list[Tensor | None]:
        grad = effective_gradients(step)
        numerator, rise = self.numerator(step, grad)
        denominator = self.denominator(step)
        u = self.denominator_slope(step, grad)
        torch._foreach_mul_(u, numerator)
        torch._foreach_div_(u, denominator)
        torch._foreach_sub_(u, rise)
        torch._foreach_div_(u, denominator)
        torch._foreach_mul_(u, v)
        lr = -step.hyper["lr"] if step.hyper["maximize"] else step.hyper["lr"]
        torch._foreach_mul_(u, [lr * c for c in self.factor(step)])
        return list(u)

    def direction(self, step: GroupStep) -> list[Tensor | None]:
        numerator, _ = self.numerator(step, effective_gradients(step))
        directions = torch._foreach_div(numerator, self.denominator(step))
        torch._foreach_mul_(directions, [-c for c in self.factor(step)])
        if decoupled(step.hyper):
            torch._foreach_sub_(directions, step.theta, alpha=step.hyper["weight_decay"])
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


def times(step: GroupStep) -> list[float]:
    """t, the number of steps that each parameter has made; one read, wherever it is kept."""
    return torch.stack([state["step"] for state in step.state]).tolist()
