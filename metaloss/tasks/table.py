"""One's own table, from a CSV, Parquet or Arrow file."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from metaloss.config.arguments import NonNegativeInt, PositiveInt, Share
from metaloss.errors import ArgumentError, DataError, first_line
from metaloss.tasks.base import CLASSIFICATION, REGRESSION, TASKS, Data, Task
from metaloss.tasks.preparation import columns, own_data
from metaloss.tasks.preparation.dialect import MISSING, Dialect
from metaloss.tasks.preparation.encoding import (
    Category,
    Column,
    Date,
    Encoding,
    Number,
    Order,
    categories,
    number,
    ranks,
    require_all,
)
from metaloss.tasks.preparation.later import pl
from metaloss.tasks.preparation.splits import Held
from metaloss.tasks.preparation.tables import Rows, quoted, read

TARGET, GROUPS, TIME, WEIGHT = "target", "groups", "time", "weight"


@TASKS.register("table")
class Table(Task):
    """Rows of a CSV file with a header, or of a Parquet or Arrow file: targets, any other columns.

    Columns of numbers are standardised by the training rows, and their missing values become the
    mean; words become an input for each category (one-hot), a missing value being a category of its
    own; dates become numbers of several kinds. A regression target is scaled to [0, 1] by its range
    in the training rows; "rmse" and "mae" are given in its own unit too. What became of each column
    is told when a run starts. See docs/own_data.md.

    Args:
        path: of the file, inside `data_dir` unless it is absolute; Parquet if it ends in .parquet,
            Arrow in .arrow, .feather or .ipc.
        target: the column to predict; in regression there may be several.
        kind: "classification" (each word, as it stands there, is a class) or "regression".
        numeric, categorical, dates: columns that are so whatever they hold. Of the others, those
            whose every value is a number, or a date, are numbers, or dates.
        ordered: columns of words that have an order, which is given.
        ignore: columns to leave out, such as a row's name.
        missing: words for a missing value, besides null and NaN of Parquet and Arrow files. Among
            numbers the ordinary ones (NULL, None, n.a., -) are so too.
        delimiter, quote: of the fields of a CSV file; a quote of '' stands for itself.
        decimal, thousands: marks in numbers; percent: "12 %" is the number 12.
        encoding: of a CSV file; UTF-16 is known by its mark.
        line_breaks: whether a quoted field may hold lines that look like rows.
        max_categories: inputs per categorical column at most; the rarest categories share one.
        groups: a column; no two splits share one of its values.
        time: a column of dates or numbers; the latest rows are the test split, the latest of the
            others the validation split, whatever the seed.
        folds, fold: the test split is the part `fold` (from 0) of as many equal ones.
        weight: a column of numbers: how often each training and validation row is drawn.
        class_weights: the same for all rows of a class: "balanced", or by name; 1 of the others.
        test_fraction: share of the rows for the test split, which is the same under every seed.
        valid_fraction: share of the other rows for validation, drawn by the seed. Both are
            stratified in classification.
    """

    def __init__(
        self,
        path: str,
        target: str | Sequence[str],
        kind: own_data.Kind,
        numeric: Sequence[str] = (),
        categorical: Sequence[str] = (),
        ignore: Sequence[str] = (),
        missing: Sequence[str] = MISSING,
        delimiter: str = ",",
        max_categories: Annotated[int, Ge(2)] = 100,
        test_fraction: Share = 0.2,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
        dates: Sequence[str] = (),
        ordered: Mapping[str, Sequence[str]] | None = None,
        quote: str = '"',
        decimal: Literal[".", ","] = ".",
        thousands: str = "",
        percent: bool = False,
        encoding: str = "utf-8",
        line_breaks: bool = False,
        groups: str | None = None,
        time: str | None = None,
        folds: Annotated[int, Ge(2)] | None = None,
        fold: NonNegativeInt = 0,
        weight: str | None = None,
        class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        if len(delimiter.encode()) != 1 or delimiter == quote:
            raise ArgumentError("delimiter", delimiter, "one character, and not the quote")
        if len(quote.encode()) > 1:
            raise ArgumentError("quote", quote, "one character, or '' for none")
        if thousands and thousands == decimal:
            raise ArgumentError("thousands", thousands, "another mark than decimal's")
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ArgumentError("encoding", encoding, "as 'utf-8' or 'cp1252'") from None
        if folds is not None and fold >= folds:
            raise ArgumentError("fold", fold, f"below {folds}, the number of folds")
        if time is not None and (groups is not None or folds is not None):
            raise ArgumentError("time", time, "alone: without groups and folds")
        if class_weights is not None and kind == "regression":
            raise ArgumentError("class_weights", class_weights, "None in regression")
        self.path = path
        self.targets = (target,) if isinstance(target, str) else tuple(target)
        if not self.targets or (len(self.targets) > 1 and kind == "classification"):
            raise ArgumentError("target", target, "one column; several only in regression")
        self.kind = kind
        self.told: dict[str, Column] = {
            **dict.fromkeys(numeric, columns.NUMBER),
            **dict.fromkeys(categorical, columns.WORDS),
            **dict.fromkeys(dates, columns.DATE),
            **{name: Order(tuple(words), 0.0, 1.0) for name, words in (ordered or {}).items()},
        }
        self.ignore = tuple(ignore)
        self.dialect = Dialect(
            tuple(missing), delimiter, quote, decimal, thousands, percent, encoding, line_breaks
        )
        self.max_categories = max_categories
        self.held = Held(test_fraction, valid_fraction, folds, fold)
        self.special = {GROUPS: groups, TIME: time, WEIGHT: weight}
        self.class_weights = class_weights

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "table")
        rows = read(path, self.dialect)
        special = {role: name for role, name in self.special.items() if name is not None}
        rows.require((*self.targets, *self.told, *self.ignore, *special.values()))
        # A column of times is an input too; who a row is of, and what it weighs, are not.
        left_out = {*self.targets, *self.ignore, special.get(GROUPS), special.get(WEIGHT)}
        names = [name for name in rows.names if name not in left_out]
        labels, classes = self._labels(rows)
        time = self._numbers(rows, special[TIME], TIME) if TIME in special else None
        try:
            split = self.held.split(labels, generator, self._groups(rows), time)
        except ValueError as error:
            raise DataError(f"{path}: {first_line(error)}") from None
        frame, encoding = self._encoding(rows, names, split["train"].numpy())
        splits = {
            name: (encoding.prepared(frame, index.numpy()), labels[index])
            for name, index in split.items()
        }
        place = rows.place(self.targets[0])
        became: dict[str, str | Column] = dict.fromkeys(rows.names, "ignored")
        became |= {name: f"{role} of the rows" for role, name in special.items()}
        became |= dict.fromkeys(self.targets, f"target, {self.kind}")
        became |= encoding.columns
        described = columns.lines(rows, became, frame, self.dialect)
        notes = (f"{path}: {rows.count:,} rows", *columns.told(described))
        weights = self._weights(rows, labels, classes)
        common: dict[str, Any] = {
            "inputs": encoding.scaling,
            "encoding": encoding,
            "notes": notes,
            "read_otherwise": "a table's labels and categories are now the text that stands there",
            "weights": None
            if weights is None
            else {name: weights[index] for name, index in split.items()},
        }
        if classes is not None:
            own_data.require_classes(splits["train"][1], classes, place)
            return Data(splits, len(classes), CLASSIFICATION, classes=tuple(classes), **common)
        scaled, targets = own_data.scaled({name: y for name, (_, y) in splits.items()}, place)
        splits = {name: (x, scaled[name]) for name, (x, _) in splits.items()}
        return Data(
            splits,
            len(self.targets),
            REGRESSION,
            targets=targets,
            target_names=self.targets,
            **common,
        )

    def _labels(self, rows: Rows) -> tuple[Tensor, list[str] | None]:
        """Indices [n] and the classes they are of; or float64 targets [n, outputs] and None."""
        kinds = rows.kinds
        if self.kind == "regression":
            values = [self._numbers(rows, name, "target") for name in self.targets]
            return torch.from_numpy(np.stack(values, 1)), None
        name = self.targets[0]
        words = rows.collect(words=self.dialect.words(name, kinds[name]))["words"]
        if words.null_count():
            self._refuse_missing(rows, name, "target")
        classes = own_data.in_order(words.unique())
        return torch.from_numpy(ranks(words, classes).cast(pl.Int64).to_numpy().copy()), classes

    def _refuse_missing(self, rows: Rows, name: str, what: str) -> None:
        """Raises DataError naming the first row where nothing stands, if there is one."""
        missing = self.dialect.words(name, rows.kinds[name]).is_null()
        if (found := rows.first(missing, pl.col(name))) is not None:
            word = f" ({quoted(found[1])} stands for a missing one)" if found[1] else ""
            raise DataError(f"{rows.place(name, found[0])}: no {what}{word}")

    def _encoding(
        self, rows: Rows, names: Sequence[str], train: np.ndarray
    ) -> tuple[pl.DataFrame, Encoding]:
        """The columns that are inputs, and how the training rows say that they become some."""
        rows.require(names)
        if not names:
            raise DataError(f"{rows.path}: no column is left for the inputs")
        for name in names:
            if name in self.told and self.told[name] != columns.WORDS:
                require_all(rows, name, self.told[name], self.dialect)
        held = rows.kinds
        found: dict[str, Column] = {}
        before, frame = columns.typed(rows, names, self.told, self.dialect)
        for name, column in before.items():
            part = frame[name][train]
            if isinstance(column, Category):
                found[name] = categories(part, held[name], self.max_categories)
                continue
            values = (ranks(part, column.words) if isinstance(column, Order) else part).to_numpy()
            if isinstance(column, Number) and frame[name].is_infinite().any():
                require_all(rows, name, column, self.dialect)
            if np.isnan(values).all():
                raise DataError(f"{rows.place(name)}: every training row misses it; ignore it")
            mean, deviation = number(values)
            if isinstance(column, Order):
                found[name] = Order(column.words, mean, deviation)
            elif isinstance(column, Date):
                clock = bool((frame[name].drop_nulls() % 1 != 0).any())
                found[name] = Date(mean, deviation, clock)
            else:
                found[name] = Number(mean, deviation)
        return frame, Encoding(found, self.dialect)

    def _numbers(self, rows: Rows, name: str, what: str) -> np.ndarray:
        """A column of numbers, or dates, all of which are there; float64 [n]."""
        told = {name: columns.NUMBER} if what != TIME else self.told
        column, frame = columns.typed(rows, [name], told, self.dialect)
        if isinstance(column[name], Category):
            require_all(rows, name, columns.NUMBER, self.dialect)
        values = frame[name].to_numpy()
        if not np.isfinite(values).all():
            self._refuse_missing(rows, name, what)
            require_all(rows, name, column[name], self.dialect)
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise DataError(f"{rows.place(name, row)}: no {what}")
        return values

    def _groups(self, rows: Rows) -> np.ndarray | None:
        name = self.special[GROUPS]
        if name is None:
            return None
        words = rows.collect(words=self.dialect.words(name, rows.kinds[name]).fill_null(""))
        return words["words"].rank("dense").to_numpy()

    def _weights(self, rows: Rows, labels: Tensor, classes: Sequence[str] | None) -> Tensor | None:
        """How often each row is drawn, [n]; None: all as often."""
        weights, name = None, self.special[WEIGHT]
        if name is not None:
            values = self._numbers(rows, name, WEIGHT)
            negative = np.flatnonzero(values < 0)
            if len(negative):
                row = int(negative[0])
                raise DataError(f"{rows.place(name, row)}: a weight below 0, {values[row]:g}")
            weights = torch.from_numpy(values.copy())
        if classes is None or self.class_weights is None:
            return weights
        of_class = own_data.class_weights(self.class_weights, labels, classes, str(rows.path))
        return of_class[labels] if weights is None else weights * of_class[labels]
