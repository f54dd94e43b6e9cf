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
    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """σ'(z) and σ''(z)."""


@dataclass(frozen=True)
class SmoothLeakyReLU(Activation):
    """γz + (1-γ)/β·log(1 + exp(βz)) (eq. 4); softplus is that of γ = 0, β = 1."""

    gamma: float
    beta: float

    def value(self, z: Tensor) -> Tensor:
        # From βz = 40 on torch's softplus is z: by then they are equal in float64 too.
        return torch.lerp(F.softplus(z, self.beta, threshold=40), z, self.gamma)

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        s = (self.beta * z).sigmoid_()
        first = s * (1 - self.gamma) + self.gamma
        second = s.addcmul_(s, s, value=-1).mul_((1 - self.gamma) * self.beta)
        return first, second


class Tanh(Activation):
    """tanh z."""

    def value(self, z: Tensor) -> Tensor:
        return z.tanh()

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a = z.tanh()
        first = 1 - a * a
        return first, -2 * a * first


class ReLU(Activation):
    """max(z, 0), with the derivative 0 at 0, as torch has it."""

    def value(self, z: Tensor) -> Tensor:
        return z.relu()

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (z > 0).to(z.dtype), torch.zeros_like(z)


class Identity(Activation):
    """z."""

    def value(self, z: Tensor) -> Tensor:
        return z

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(z), torch.zeros_like(z)


def by_name(name: str, gamma: float, beta: float) -> Activation:
    """The activation of that name; γ and β are the smooth leaky ReLU's."""
    if name == "smooth_leaky_relu":
        return SmoothLeakyReLU(gamma, beta)
    if name == "softplus":
        return SmoothLeakyReLU(0.0, 1.0)
    if name == "tanh":
        return Tanh()
    return ReLU() if name == "relu" else Identity()
