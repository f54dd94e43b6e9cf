"""Multinomial logistic regression."""

from __future__ import annotations

from math import prod

from torch import nn

from metaloss.backbones.base import BACKBONES, xavier_uniform


@BACKBONES.register("logistic")
def logistic(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """One linear layer on the flattened input (McCullagh & Nelder, 1989; paper, section 4.3)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), outputs))
    xavier_uniform(model)
    return model
