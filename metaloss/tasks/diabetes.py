"""Diabetes progression, from inside scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch

from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation.splits import regression_data


@TASKS.register("diabetes")
class Diabetes(Task):
    """442 patients, 10 inputs (Efron et al., 2004; paper, section 4.2); needs no download."""

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        from sklearn.datasets import load_diabetes

        inputs, target = load_diabetes(return_X_y=True)
        return regression_data(inputs, target, self.valid_fraction, generator)
