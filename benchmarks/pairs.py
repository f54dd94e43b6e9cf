"""The twelve pairs of data set and base model of the paper's Table 1, as far as time goes.

Inputs are noise of the data set's shape: what a step costs does not depend on what they show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from metaloss.backbones import BACKBONES
from metaloss.links import TaskLoss
from metaloss.problem.batches import Batch


@dataclass(frozen=True)
class Pair:
    """A base model, and batches of the shapes it is trained on.

    A pair with one output is a regression; any other a classification.
    """

    backbone: str
    input_shape: tuple[int, ...]
    outputs: int
    batch_size: int
    arguments: dict[str, Any] = field(default_factory=dict)  #: of the backbone

    @property
    def task_loss(self) -> TaskLoss:
        """L_T."""
        return F.mse_loss if self.outputs == 1 else F.cross_entropy

    def model(self) -> nn.Module:
        """f_θ, drawn from torch's global generator."""
        model: nn.Module = BACKBONES[self.backbone](
            self.input_shape, self.outputs, **self.arguments
        )
        return model

    def draw(self, device: torch.device) -> Batch:
        """(inputs, labels), from torch's global generator."""
        inputs = torch.randn(self.batch_size, *self.input_shape, device=device)
        if self.outputs == 1:
            return inputs, torch.rand(self.batch_size, 1, device=device)
        return inputs, torch.randint(self.outputs, (self.batch_size,), device=device)


DIGIT, PHOTO = (1, 28, 28), (3, 32, 32)

#: By name: the backbone's, or where that is not enough the pair's own in gin_configs/tasks.
PAIRS = {
    "crime_mlp": Pair("mlp", (100,), 1, 128),
    "diabetes_mlp": Pair("mlp", (10,), 1, 128),
    "california_mlp": Pair("mlp", (8,), 1, 128),
    "logistic": Pair("logistic", DIGIT, 10, 128),
    "mlp": Pair("mlp", DIGIT, 10, 128),
    "lenet5": Pair("lenet5", DIGIT, 10, 128),
    "vgg16": Pair("vgg16", PHOTO, 10, 16),
    "allcnn": Pair("allcnn", PHOTO, 10, 32),
    "resnet18": Pair("resnet18", PHOTO, 10, 16),
    "squeezenet": Pair("squeezenet", PHOTO, 10, 16),
    "cifar100_wide_resnet": Pair("wide_resnet", PHOTO, 100, 4, {"depth": 28, "width": 10}),
    "svhn_wide_resnet": Pair("wide_resnet", PHOTO, 10, 4, {"depth": 16, "width": 8}),
}

#: Those that are measured where they are named alone: a step takes gigabytes, and many seconds.
LARGE = {
    # The end of a language model, on 64 texts of 128 tokens.
    "language_head": Pair("mlp", (128,), 32_000, 64 * 128, {"hidden": (128,)}),
}


def of_outputs(outputs: int) -> Pair:
    """A 256-256 network with so many outputs: what a learned loss costs grows with them."""
    return Pair("mlp", (256,), outputs, 128, {"hidden": (256, 256)})
