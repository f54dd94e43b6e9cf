"""Smooth functions that losses and their parameters are made of, with their inverses."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log(p: Tensor) -> Tensor:
    """log p of probabilities, finite at 0 with its first and second derivative.

    The root of the dtype's smallest normal number is added (1e-19 in float32), so that 1/p² is a
    number too. What is less probable than that has next to no slope: a loss of probabilities asks
    for nothing there, where one of logits, as torch.nn.functional.cross_entropy, still does.
    """
    return (p + math.sqrt(torch.finfo(p.dtype).tiny)).log()


def softplus_inverse(y: float) -> float:
    """x with log(1 + eˣ) = y, for y > 0."""
    return y + math.log(-math.expm1(-y))


def sigmoid_inverse(y: float) -> float:
    """x with 1/(1 + e⁻ˣ) = y, for y in (0, 1)."""
    return math.log(y) - math.log1p(-y)


def expm1_ratio(x: Tensor) -> Tensor:
    """(eˣ - 1)/x, with its limit 1 at 0; twice differentiable there too."""
    near = x.abs() < 0.1
    series = torch.ones_like(x)
    for n in range(12, 1, -1):  # 1 + x/2 (1 + x/3 (1 + ...)): its rest is below 1e-17
        series = 1 + x / n * series
    away = torch.where(near, 1.0, x)  # a NaN here would spoil the other branch's gradient
    return torch.where(near, series, away.expm1() / away)
