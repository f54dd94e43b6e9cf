"""Activations: elementwise functions σ, with their first and second derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(ABC):
    """An elementwise function σ."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """σ(z)."""

    @abstractmethod
    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """σ(z), σ'(z) and σ''(z); the last is the caller's to change."""


@dataclass(frozen=True)
class SmoothLeakyReLU(Activation):
    """γz + (1-γ)/β·log(1 + exp(βz)) (eq. 4); softplus is that of γ = 0, β = 1."""

    gamma: float
    beta: float

    def value(self, z: Tensor) -> Tensor:
        # From βz = 40 on torch's softplus is z: by then they are equal in float64 too.
        return torch.lerp(F.softplus(z, self.beta, threshold=40), z, self.gamma)

    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # One exponential for all: log(1 + exp(βz)) = max(βz, 0) + log(1 + u), u = exp(-β|z|), and
        # r = 1/(1 + u) is the sigmoid of β|z|. From 1 + u the logarithm is good to what a number
        # near 1 can hold, and cheaper than log1p. Below exp(-40) u is nothing beside 1 in float64
        # too, and numbers that far down are slow.
        smooth = 1 - self.gamma
        u = z.abs().mul_(-self.beta).clamp_(min=-40).exp_()
        w = 1 + u
        r = w.reciprocal()
        value = F.leaky_relu(z, self.gamma).add_(w.log_(), alpha=smooth / self.beta)
        first = (r - 0.5).copysign_(z).mul_(smooth).add_((1 + self.gamma) / 2)
        second = r.addcmul_(r, r, value=-1).mul_(smooth * self.beta)
        return value, first, second


class Tanh(Activation):
    """tanh z."""

    def value(self, z: Tensor) -> Tensor:
        return z.tanh()

    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = z.tanh()
        first = 1 - a * a
        return a, first, -2 * a * first


class ReLU(Activation):
    """max(z, 0), with the derivative 0 at 0, as torch has it."""

    def value(self, z: Tensor) -> Tensor:
        return z.relu()

    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z.relu(), (z > 0).to(z.dtype), torch.zeros_like(z)


class Identity(Activation):
    """z."""

    def value(self, z: Tensor) -> Tensor:
        return z

    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z, torch.ones_like(z), torch.zeros_like(z)


def by_name(name: str, gamma: float, beta: float) -> Activation:
    """The activation of that name; γ and β are the smooth leaky ReLU's."""
    if name == "smooth_leaky_relu":
        return SmoothLeakyReLU(gamma, beta)
    if name == "softplus":
        return SmoothLeakyReLU(0.0, 1.0)
    if name == "tanh":
        return Tanh()
    return ReLU() if name == "relu" else Identity()
