"""Encoding of a table: how its columns become numbers, one for each input."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from metaloss.errors import DataError, did_you_mean
from metaloss.tasks.preparation.columns import Column, Columns, read
from metaloss.tasks.preparation.scaling import Scaling

if TYPE_CHECKING:
    from sklearn.preprocessing import OneHotEncoder


@dataclass(frozen=True)
class Encoding:
    """Columns as numbers, by the training rows.

    Attributes:
        by_column: of a numeric column, the number that a missing value becomes; of a categorical
            one, its encoder, one-hot. In the order of the inputs.
        delimiter, missing: see `metaloss.tasks.preparation.columns.read`.
    """

    by_column: Mapping[str, float | OneHotEncoder]
    delimiter: str
    missing: Collection[str]

    @property
    def features(self) -> tuple[str, ...]:
        """What each input is: a column, or a column and one of its categories."""
        return tuple(f"{name}{category}" for name in self.by_column for category in self._of(name))

    def read(self, path: Path) -> torch.Tensor:
        """The rows of another file, [n, features]; it may have other columns besides.

        Raises:
            DataError: the file is damaged, has no such column, or a word where numbers are.
        """
        columns = read(path, self.delimiter, self.missing)
        for name in self.by_column:
            if name not in columns.by_name:
                near, known = did_you_mean(name, columns.by_name), ", ".join(columns.by_name)
                raise DataError(f"{path}: no column '{name}'{near} · it has: {known}")
        return torch.from_numpy(self.encode(columns))

    def encode(self, columns: Columns) -> np.ndarray:
        """The table as numbers [n, features], float64."""
        parts = []
        for name, how in self.by_column.items():
            if isinstance(how, float):
                values = columns.numbers(name)
                parts.append(np.where(np.isnan(values), how, values)[:, None])
            else:
                parts.append(how.transform(columns.by_name[name].words[:, None]))
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def scaling(self, train: np.ndarray) -> Scaling:
        """To mean 0 and deviation 1 of the numeric columns over the training rows [n, features]."""
        zero, unit = torch.zeros(train.shape[1]).double(), torch.ones(train.shape[1]).double()
        i = 0
        for name, how in self.by_column.items():
            if isinstance(how, float):
                zero[i], deviation = how, train[:, i].std()
                unit[i] = deviation if deviation > 0 else 1.0
            i += len(self._of(name))
        return Scaling(zero, unit)

    def _of(self, name: str) -> list[str]:
        """What tells the inputs of a column apart."""
        how = self.by_column[name]
        if isinstance(how, float):
            return [""]
        return [f" ={word[1:]}" for word in how.get_feature_names_out([""])]


def mean(columns: Columns, name: str, train: np.ndarray) -> float:
    """Of a numeric column, over the training rows that have it.

    Raises:
        DataError: none has.
    """
    values = columns.numbers(name)[train]
    present = values[~np.isnan(values)]
    if not len(present):
        raise DataError(f"{columns.place(name)}: every training row misses it; ignore it")
    return float(present.mean())


def one_hot(column: Column, train: np.ndarray, max_categories: int) -> OneHotEncoder:
    """By the training rows; a category that none of them has is the rare ones', or 0."""
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=max_categories,
        sparse_output=False,
    )
    return encoder.fit(column.words[train, None])
