"""Cross-entropy on probabilities: the handcrafted loss of classification."""

from __future__ import annotations

from torch import Tensor

from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth


@REPRESENTATIONS.register("cross_entropy")
class CrossEntropy(Representation):
    """-(Σᵢ yᵢ log fᵢ), without parameters; the base loss that learned losses are held against.

    It sees probabilities, as every representation does, and is finite where one is 0. A baseline
    run descends the task's own cross-entropy on logits instead.
    """

    classification_only = True
    pairs = "sum"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -(target * smooth.log(prediction)).sum(-1)
