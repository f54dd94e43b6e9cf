"""The paper's learned loss without its closed-form derivatives."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaloss.representations.nn import NN


class PlainNetwork(nn.Module):
    """The function of `representations.nn` with its weights, written as one would: linear layers.

    All its derivatives are autograd's. It is what a user of another library has, where
    `representations.nn` would lend that library a part of this one.
    """

    def __init__(self, network: NN) -> None:
        super().__init__()
        assert (network.activation, network.output) == ("smooth_leaky_relu", "identity")
        self.layers = deepcopy(network.layers)
        self.gamma, self.beta = network.gamma, network.beta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(prediction [batch, C], target [batch, C]) -> loss [batch]."""
        a = torch.stack((prediction, target), dim=-1)
        *hidden, last = self.layers
        for layer in hidden:
            z = layer(a)
            a = self.gamma * z + (1 - self.gamma) * F.softplus(z, self.beta)
        return last(a).squeeze(-1).mean(-1)  # type: ignore[no-any-return]
