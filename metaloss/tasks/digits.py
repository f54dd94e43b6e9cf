"""Handwritten digits of 8x8 pixels, from inside scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation import scaling
from metaloss.tasks.preparation.splits import image_classification_data


@TASKS.register("digits")
class Digits(Task):
    """1797 images [1, 8, 8] of 10 classes (Alpaydin & Kaynak, 1998); needs no download.

    A fixed, stratified fifth is the test split under every seed.
    """

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        pixels = scaling.by(16.0)  # they are 0..16
        inputs = pixels.prepare(torch.from_numpy(digits.images)[:, None])
        labels = torch.from_numpy(digits.target).long()
        rest, test = train_test_split(
            np.arange(len(labels)), test_size=0.2, random_state=0, stratify=digits.target
        )
        return image_classification_data(
            (inputs[rest], labels[rest]),
            (inputs[test], labels[test]),
            10,
            self.valid_fraction,
            generator,
            inputs=pixels,
        )
