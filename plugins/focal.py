"""A plugin, worked through: a focal loss whose focus is learned (Lin et al., 2017)."""

import torch
from torch import Tensor, nn

from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("focal")
class Focal(Representation):
    """-s (1 - p)^γ log p with learned scale s and focus γ; p is the probability of the label.

    Args:
        gamma: γ at the start; 0 is cross-entropy.
        scale: s at the start.
    """

    def __init__(self, gamma: float = 2.0, scale: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.scale = gamma, scale  # arguments stay attributes: the loss can be exported
        self.phi = nn.Parameter(torch.tensor([float(gamma), float(scale)]))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        tiny = torch.finfo(prediction.dtype).eps  # 0 and 1 have infinite derivatives
        p = (prediction * target).sum(-1).clamp(tiny, 1 - tiny)  # [batch]
        gamma, scale = self.phi
        return -scale * (1 - p) ** gamma * p.log()
