"""One's own table, from a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge

from metaloss.config.arguments import PositiveInt, Share
from metaloss.errors import ArgumentError, DataError, did_you_mean
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import own_data
from metaloss.tasks.preparation.columns import Columns, read
from metaloss.tasks.preparation.encoding import Encoding, mean, one_hot
from metaloss.tasks.preparation.splits import hold_out


@TASKS.register("table")
class Table(Task):
    """Rows of a CSV file with a header, or of a Parquet file: one target, any other columns.

    Numeric inputs are standardised by the training rows, and their missing values become the mean;
    categorical ones become an input for each category (one-hot), a missing value being a category
    of its own. A regression target is scaled to [0, 1] by its range in the training rows; "rmse"
    and "mae" are given in its own unit too. See docs/own_data.md.

    Args:
        path: of the file, inside `data_dir` unless it is absolute; Parquet if it ends in .parquet.
        target: the column to predict.
        kind: "classification" (each word or number is a class) or "regression".
        numeric, categorical: columns that are so whatever they hold. Of the others, those whose
            every value is a number are numeric.
        ignore: columns to leave out, such as a row's name.
        missing: words for a missing value, besides Parquet's null and NaN.
        delimiter: between the fields of a CSV file.
        max_categories: inputs per categorical column at most; the rarest categories share one.
        test_fraction: share of the rows for the test split, which is the same under every seed.
        valid_fraction: share of the other rows for validation, drawn by the seed. Both are
            stratified in classification.
    """

    def __init__(
        self,
        path: str,
        target: str,
        kind: own_data.Kind,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        ignore: Sequence[str] = (),
        missing: Sequence[str] = ("", "?", "NA", "N/A", "NaN", "nan", "null"),
        delimiter: str = ",",
        max_categories: Annotated[int, Ge(2)] = 100,
        test_fraction: Share = 0.2,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        if len(delimiter) != 1:
            raise ArgumentError("delimiter", delimiter, "one character")
        self.path = path
        self.target = target
        self.kind = kind
        self.numeric = tuple(numeric)
        self.categorical = tuple(categorical)
        self.ignore = tuple(ignore)
        self.missing = tuple(missing)
        self.delimiter = delimiter
        self.max_categories = max_categories
        self.test_fraction = test_fraction

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "table")
        columns = read(path, self.delimiter, self.missing)
        self._require_columns(columns)
        labels, classes = self._labels(columns)
        rest, test = hold_out(labels, self.test_fraction, torch.Generator().manual_seed(0))
        if len(rest) < 2:
            raise DataError(f"{path}: {len(labels)} rows are too few to split")
        kept, held = hold_out(labels[rest], self.valid_fraction, generator)
        rows = {"train": rest[kept], "valid": rest[held], "test": test}
        train = rows["train"].numpy()
        encoding = self._encoding(columns, train)
        raw = encoding.encode(columns)
        standard = encoding.scaling(raw[train])
        inputs = standard.prepare(torch.from_numpy(raw))
        splits = {split: (inputs[index], labels[index]) for split, index in rows.items()}
        place = columns.place(self.target)
        if classes is not None:
            own_data.require_all_classes(splits["train"][1], classes, place)
            names = tuple(f"{c:g}" if isinstance(c, float) else c for c in classes)
            return Data(
                splits,
                len(names),
                CLASSIFICATION,
                inputs=standard,
                encoding=encoding,
                classes=names,
            )
        splits, targets = own_data.scaled(splits, place)
        return Data(splits, 1, REGRESSION, inputs=standard, encoding=encoding, targets=targets)

    def _require_columns(self, columns: Columns) -> None:
        for name in (self.target, *self.numeric, *self.categorical, *self.ignore):
            if name not in columns.by_name:
                near, known = did_you_mean(name, columns.by_name), ", ".join(columns.by_name)
                raise DataError(f"{columns.path}: no column '{name}'{near} · it has: {known}")

    def _labels(self, columns: Columns) -> tuple[torch.Tensor, np.ndarray | None]:
        """Indices [n] and the classes they are of; or float64 targets [n, 1] and None."""
        column = columns.by_name[self.target]
        absent = np.flatnonzero(column.missing)
        if len(absent):
            raise DataError(f"{columns.place(self.target, int(absent[0]))}: no target")
        if self.kind == "regression":
            return torch.from_numpy(columns.numbers(self.target))[:, None], None
        labels = columns.numbers(self.target) if column.is_numeric else column.words
        classes, indices = np.unique(labels, return_inverse=True)
        return torch.from_numpy(indices), classes

    def _encoding(self, columns: Columns, train: np.ndarray) -> Encoding:
        """Of the columns that are inputs, by the rows `train`."""
        by_column: dict[str, Any] = {}
        for name, column in columns.by_name.items():
            if name == self.target or name in self.ignore:
                continue
            if name in self.numeric or (column.is_numeric and name not in self.categorical):
                by_column[name] = mean(columns, name, train)
            else:
                by_column[name] = one_hot(column, train, self.max_categories)
        if not by_column:
            raise DataError(f"{columns.path}: no column is left for the inputs")
        return Encoding(by_column, self.delimiter, self.missing)
