"""A task as a plugin: two interleaved half circles, drawn by scikit-learn."""

from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge

from metaloss.config.arguments import PositiveFloat, PositiveInt, Share
from metaloss.tasks.base import CLASSIFICATION, TASKS, Data, Task
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.splits import with_validation


@TASKS.register("two_moons")
class TwoMoons(Task):
    """Points [2] of 2 classes; a model without a hidden layer cannot tell them apart.

    Args:
        examples: points for training and validation; as many again are the test split, and the same
            under every seed.
        noise: standard deviation around the half circles, whose radius is 1.
    """

    def __init__(
        self,
        examples: Annotated[int, Ge(20)] = 1000,
        noise: PositiveFloat = 0.2,
        batch_size: PositiveInt = 64,
        valid_fraction: Share = 0.1,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.examples = examples
        self.noise = noise

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        from sklearn.datasets import make_moons  # here, so that listing components stays quick

        drawn = {
            split: make_moons(self.examples, noise=self.noise, random_state=state)
            for state, split in enumerate(("train", "test"))
        }
        splits = {
            split: (torch.from_numpy(points), torch.from_numpy(labels).long())
            for split, (points, labels) in drawn.items()
        }
        splits = with_validation(splits, self.valid_fraction, generator)
        inputs = scaling.standard(splits["train"][0])  # by the training rows alone
        splits = {name: (inputs.prepare(x), y) for name, (x, y) in splits.items()}
        return Data(splits, 2, CLASSIFICATION, inputs=inputs)
