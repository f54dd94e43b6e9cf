"""California Housing."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from metaloss.errors import DataError
from metaloss.tasks.base import TASKS, Data, Task, regression_data

ROWS, FIELDS = 20640, 9


@TASKS.register("california")
class California(Task):
    """House values of 20,640 census block groups, 8 inputs (Pace & Barry, 1997; section 4.2)."""

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        inputs, target = read(data_dir)
        return regression_data(inputs, target, self.valid_fraction, generator)


def read(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [20640, 8] and target [20640], as scikit-learn's loader gives them.

    From the plain file `CaliforniaHousing/cal_housing.data` if it is there, else through
    scikit-learn's loader and its cache in `data_dir`.
    """
    path = data_dir / "CaliforniaHousing" / "cal_housing.data"
    if not path.is_file():
        return _fetch(data_dir, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file; the shape says it
            table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {str(error).split(';')[0]}") from None
    if table.shape != (ROWS, FIELDS):
        raise DataError(
            f"{path}: a table of {table.shape}, not {(ROWS, FIELDS)}: the file is cut short"
        )
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    inputs = [
        income,
        age,
        rooms / households,
        bedrooms / households,
        population,
        population / households,
        latitude,
        longitude,
    ]
    return np.stack(inputs, axis=1), value / 100_000


def _fetch(data_dir: Path, path: Path) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import fetch_california_housing

    try:
        return fetch_california_housing(data_home=data_dir, return_X_y=True, n_retries=1)
    except Exception as error:  # its cache is a pickle: a damaged one may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"no file {path}, and scikit-learn could not load its cache or download California "
            f"Housing ({reason}): put cal_housing.data there, or set --data_dir"
        ) from None
