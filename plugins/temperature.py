"""A learned loss as a plugin: cross-entropy at a learned temperature (Hinton et al., 2015)."""

import math

import torch
from torch import Tensor, nn

from metaloss.config.arguments import PositiveFloat
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth


@REPRESENTATIONS.register("temperature")
class Temperature(Representation):
    """-Σᵢ yᵢ log(fᵢ^(1/T) / Σⱼ fⱼ^(1/T)) with a learned T > 0; cross-entropy at T = 1.

    Args:
        start: T at the start.
    """

    classification_only = True  # in regression a run says so, and does not start

    def __init__(self, start: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.start = start  # arguments stay attributes: an exported loss is built again by them
        self.log_t = nn.Parameter(torch.tensor(math.log(start)))  # φ: any number makes a T > 0

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        logits = smooth.log(prediction) / self.log_t.exp()  # up to a constant; finite at f = 0
        return -(target * logits.log_softmax(-1)).sum(-1)  # [batch]: no mean over examples
