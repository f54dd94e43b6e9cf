"""A loss network that sees all classes at once, in no order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from metaloss.config.arguments import PositiveInt
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts.activations import SmoothLeakyReLU


@REPRESENTATIONS.register("class_set")
class ClassSet(Representation):
    """The paper's network with a view of the other outputs: z_l = W_l a_{l-1} + U_l c(a_{l-1}).

    `nn` sees each pair (fᵢ, yᵢ) alone; here the hidden layers of all outputs of an example meet in
    a context c, their mean (DeepSets; Zaheer et al., 2017) or, for each output, what it attends to
    (one head, softmax(qᵢ·kⱼ/√H); Lee et al., 2019). The order of the classes does not matter. U
    starts at 0: M starts as `nn`, and the terms between outputs are learned on top.

    Args:
        hidden: units of each hidden layer.
        context: "mean" or "attention".
        gamma: leak of the smooth leaky ReLU (paper, eq. 4).
        beta: its smoothness.

    Raises:
        ConfigError: a width below 1, or an unknown context.
    """

    def __init__(
        self,
        hidden: Sequence[PositiveInt] = (40, 40),
        context: Literal["mean", "attention"] = "mean",
        gamma: float = 0.01,
        beta: float = 10.0,
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.context = context
        self.gamma = gamma
        self.beta = beta
        widths = list(pairwise((2, *self.hidden, 1)))
        self.layers = _linear(widths)
        self.mixing = _linear(widths[1:])
        attended = [(width, width) for width in self.hidden] if context == "attention" else []
        self.queries, self.keys = _linear(attended), _linear(attended)
        for layer in self.mixing:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        sigma = SmoothLeakyReLU(self.gamma, self.beta)
        first, *layers = self.layers
        z = first(torch.stack((prediction, target), dim=-1))  # [batch, C, H]
        for number, (layer, mix) in enumerate(zip(layers, self.mixing, strict=True)):
            a = sigma.value(z)
            z = layer(a) + mix(self._context(number, a))
        return z.squeeze(-1).mean(-1)

    def _context(self, number: int, a: Tensor) -> Tensor:
        """What each output sees of all, [batch, C or 1, H]."""
        if self.context == "mean":
            return a.mean(-2, keepdim=True)
        q, k = self.queries[number](a), self.keys[number](a)
        return (q @ k.mT / math.sqrt(a.shape[-1])).softmax(-1) @ a


def _linear(sizes: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Layers without biases, Kaiming-normal."""
    layers = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]
    return layers
