"""Cross-entropy on probabilities: the handcrafted loss of classification."""

from __future__ import annotations

import torch
from torch import Tensor

from metaloss.representations.base import REPRESENTATIONS, Representation


@REPRESENTATIONS.register("cross_entropy")
class CrossEntropy(Representation):
    """-(Σᵢ yᵢ log fᵢ), without parameters; the base loss that learned losses are held against.

    It sees probabilities, as every representation does, kept above the dtype's smallest normal
    number. A baseline run descends the task's own cross-entropy on logits instead.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -(target * prediction.clamp_min(torch.finfo(prediction.dtype).tiny).log()).sum(-1)
