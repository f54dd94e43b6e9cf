"""Cross-entropy with a learned amount of label smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metaloss.config.arguments import Share
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import smooth


@REPRESENTATIONS.register("label_smoothing")
class LabelSmoothing(Representation):
    """-Σᵢ ((1 - ε) yᵢ + ε/C) log fᵢ with a learned ε (Szegedy et al., 2016, section 7).

    ε = sigmoid(raw) stays in (0, 1). It starts at Szegedy's 0.1; the smaller, the nearer to
    cross-entropy, and the slower to learn. What AdaLFL's network learns looks like it (paper,
    section 5.7). In float32 a class that is less probable than 1e-19 has no slope here; smoothing
    that is not learned is `Runner.label_smoothing`, of logits (`baselines/label_smoothing.gin`).

    Args:
        epsilon: ε at the start, between 0 and 1.

    Raises:
        ConfigError: an ε out of its range.
    """

    classification_only = True

    def __init__(self, epsilon: Share = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.raw = nn.Parameter(torch.tensor(smooth.sigmoid_inverse(epsilon)))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        smoothed = target.lerp(torch.full_like(target, 1 / target.shape[-1]), self.raw.sigmoid())
        return -(smoothed * smooth.log(prediction)).sum(-1)
