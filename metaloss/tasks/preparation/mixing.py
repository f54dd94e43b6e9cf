"""Mixing: a training batch whose pictures are mixed in pairs, and whose labels are soft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from metaloss.errors import ConfigError
from metaloss.machine import seeding
from metaloss.problem.batches import Batch
from metaloss.tasks.base import CLASSIFICATION, Objective


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al., 2018), CutMix (Yun et al., 2019) and label smoothing, by torchvision.

    Each batch is mixed by one of the two that are asked for, drawn evenly, with a share that is
    drawn from Beta(α, α); each example with the one before it in the batch, whose order is random.
    Labels become probabilities of classes, [batch, C].

    Attributes:
        classes: C.
        mixup, cutmix: their α; 0: not at all.
        smoothing: ε of label smoothing: (1 - ε) y + ε / C.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The mixed batch; equal generator states give equal ones.

        Args:
            batch: inputs [batch, ...], and classes [batch].
            generator: on the CPU.
        """
        inputs, labels = batch
        soft = F.one_hot(labels, self.classes).float()
        soft = (1 - self.smoothing) * soft + self.smoothing / self.classes
        if not self._transforms:
            return inputs, soft
        # A table's row is to torchvision a picture of one pixel.
        pictures = inputs if inputs.dim() == 4 else inputs.flatten(1)[..., None, None]
        with seeding.drawing_from(generator):
            which = int(torch.randint(len(self._transforms), ()))
            mixed, soft = self._transforms[which](pictures, soft)
        return mixed.view(inputs.shape), soft

    def require(self, input_shape: tuple[int, ...], objective: Objective) -> None:
        """Raises ConfigError for a task whose labels are no classes, or that has no pictures."""
        if objective is not CLASSIFICATION:
            raise ConfigError(
                "Runner.mixup, cutmix and label_smoothing are of classes; this task's labels are "
                "others: leave them out"
            )
        if self.cutmix and len(input_shape) != 3:
            raise ConfigError(
                f"Runner.cutmix = {self.cutmix} cuts pictures; this task's inputs have shape "
                f"{list(input_shape)}: Runner.mixup mixes those"
            )

    @cached_property
    def _transforms(self) -> list[Callable[..., Any]]:
        if not self.mixup and not self.cutmix:
            return []
        from torchvision.transforms import v2  # half a second, and only for who mixes

        asked = ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
        return [kind(alpha=alpha, num_classes=self.classes) for kind, alpha in asked if alpha]
