"""Activations: elementwise functions σ, with their first and second derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRAIGHT = -80.0  #: up to here log s(x) is x, to far beyond float64's rounding


class Activation(ABC):
    """An elementwise function σ, which is cheapest in units of its own: σ(z) = unit·τ(z/unit)."""

    unit = 1.0

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """σ(z), differentiable as often as one likes."""

    @abstractmethod
    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """τ(x), τ'(x), and what `second` takes. x is handed over: it may be written into."""

    @abstractmethod
    def second(self, kept: Tensor, v: Tensor) -> Tensor:
        """τ''(x)·v, a new tensor."""


@dataclass(frozen=True)
class SmoothLeakyReLU(Activation):
    """γz + (1-γ)/β·log(1 + exp(βz)) (eq. 4); softplus is that of γ = 0, β = 1.

    With x = -βz, and s the logistic sigmoid, τ(x) = γx + (1-γ)·log s(x), which is few kernels, and
    quick ones: torch's logsigmoid, whose digits beyond the last one of 1 would be lost in the sum
    over a layer, takes twice as long on a CPU as all of them.
    """

    gamma: float
    beta: float

    @property
    def unit(self) -> float:  # type: ignore[override]
        return -1 / self.beta

    def value(self, z: Tensor) -> Tensor:
        # From βz = 40 on torch's softplus is z: by then they are equal in float64 too.
        return torch.lerp(F.softplus(z, self.beta, threshold=40), z, self.gamma)

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = x.clamp(min=STRAIGHT)  # below, τ is x and a constant, and s would become 0
        s = near.sigmoid()
        first = torch.rsub(s, 1.0, alpha=1 - self.gamma)
        return s.log().lerp_(near, self.gamma).add_(x.sub_(near)), first, s

    def second(self, kept: Tensor, v: Tensor) -> Tensor:
        bent: Tensor = torch.ops.aten.sigmoid_backward(v, kept)
        return bent.mul_(self.gamma - 1)


class Tanh(Activation):
    """tanh z."""

    def value(self, z: Tensor) -> Tensor:
        return z.tanh()

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = x.tanh()
        first = 1 - a * a
        return a, first, a * first

    def second(self, kept: Tensor, v: Tensor) -> Tensor:
        return -2 * kept * v


class ReLU(Activation):
    """max(z, 0), with the derivative 0 at 0, as torch has it."""

    def value(self, z: Tensor) -> Tensor:
        return z.relu()

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.relu(), (x > 0).to(x.dtype), x

    def second(self, kept: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(kept)


class Identity(Activation):
    """z."""

    def value(self, z: Tensor) -> Tensor:
        return z

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, torch.ones_like(x), x

    def second(self, kept: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(kept)


def by_name(name: str, gamma: float, beta: float) -> Activation:
    """The activation of that name; γ and β are the smooth leaky ReLU's."""
    if name == "smooth_leaky_relu":
        return SmoothLeakyReLU(gamma, beta)
    if name == "softplus":
        return SmoothLeakyReLU(0.0, 1.0)
    if name == "tanh":
        return Tanh()
    return ReLU() if name == "relu" else Identity()
