"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from metaloss.backbones.base import BACKBONES, xavier_uniform
from metaloss.config.arguments import PositiveInt


@BACKBONES.register("mlp")
def mlp(
    input_shape: tuple[int, ...], outputs: int, hidden: Sequence[PositiveInt] = (1000, 1000)
) -> nn.Module:
    """ReLU layers on the flattened input; 1000-1000 as in the paper (Baydin et al., 2018).

    Args:
        hidden: units of each hidden layer.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise((prod(input_shape), *hidden)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    layers.append(nn.Linear((prod(input_shape), *hidden)[-1], outputs))
    model = nn.Sequential(*layers)
    xavier_uniform(model)
    return model
