"""Diabetes progression, from inside scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metaloss.tasks.base import TASKS
from metaloss.tasks.preparation.splits import SplitTable


@TASKS.register("diabetes")
class Diabetes(SplitTable):
    """442 patients, 10 inputs (Efron et al., 2004; paper, section 4.2); needs no download."""

    def table(self, data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_diabetes

        inputs, target = load_diabetes(return_X_y=True)
        return inputs, target
