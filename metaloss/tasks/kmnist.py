"""Kuzushiji-MNIST."""

from __future__ import annotations

from pathlib import Path

import torch

from metaloss.tasks import mnist
from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation.images import Images, by_channel
from metaloss.tasks.preparation.splits import image_classification_data


@TASKS.register("kmnist")
class KMNIST(Task):
    """70,000 cursive Japanese characters [1, 28, 28], normalised (Clanuwat et al., 2018).

    Splits as MNIST's.
    """

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        pixels = Images(by_channel((0.1918,)), by_channel((0.3483,)))
        train, test = mnist.read(data_dir, "KMNIST", pixels)
        return image_classification_data(
            train, test, 10, self.valid_fraction, generator, inputs=pixels
        )
