"""Fashion-MNIST."""

from __future__ import annotations

from pathlib import Path

import torch

from metaloss.tasks import mnist
from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation.images import Images, by_channel
from metaloss.tasks.preparation.splits import image_classification_data


@TASKS.register("fashion_mnist")
class FashionMNIST(Task):
    """70,000 articles of clothing [1, 28, 28], normalised (Xiao et al., 2017).

    Splits as MNIST's.
    """

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        pixels = Images(by_channel((0.2860,)), by_channel((0.3530,)))
        train, test = mnist.read(data_dir, "FashionMNIST", pixels)
        return image_classification_data(
            train, test, 10, self.valid_fraction, generator, inputs=pixels
        )
