"""Columns of a CSV or Parquet file: words or numbers, with what is missing marked."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metaloss.errors import DataError, first_line


@dataclass
class Column:
    """One column of a table.

    Attributes:
        values: words (str objects) or numbers (float64), [n].
        missing: [n], bool.
    """

    values: np.ndarray
    missing: np.ndarray

    @cached_property
    def words(self) -> np.ndarray:
        """Objects [n]; "" where missing."""
        return np.where(self.missing, "", self.values.astype(str).astype(object))

    @cached_property
    def numbers(self) -> np.ndarray:
        """float64 [n]; NaN where missing.

        Raises:
            ValueError: a word is no number.
        """
        return np.where(self.missing, np.nan, self.values).astype(np.float64)

    @cached_property
    def is_numeric(self) -> bool:
        """Whether every value that is not missing is a number."""
        try:
            return len(self.numbers) > 0
        except ValueError:
            return False


@dataclass
class Columns:
    """A table by column, and where it is from.

    Attributes:
        path: of the file.
        by_name: in the file's order.
        lines: the line of the file on which each row ends; None: rows have no lines.
    """

    path: Path
    by_name: dict[str, Column]
    lines: list[int] | None

    def place(self, name: str, row: int | None = None) -> str:
        """A column, or a value of it, in the words of an error."""
        place = f"{self.path}: column '{name}'"
        if row is None:
            return place
        return f"{place}, row {row}" if self.lines is None else f"{place}, line {self.lines[row]}"

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64 [n]; NaN where missing.

        Raises:
            DataError: a word is no finite number; its line is named.
        """
        column = self.by_name[name]
        for row, word in enumerate(() if column.is_numeric else column.values):
            try:
                float("nan" if column.missing[row] else word)
            except ValueError:
                raise DataError(f"{self.place(name, row)}: {word!r} is no number") from None
        strange = np.flatnonzero(~column.missing & ~np.isfinite(column.numbers))
        if len(strange):
            row = int(strange[0])
            raise DataError(f"{self.place(name, row)}: {column.values[row]} is no finite number")
        return column.numbers


def read(path: Path, delimiter: str, missing: Collection[str]) -> Columns:
    """A Parquet file if its name ends in .parquet, else a CSV file with a header.

    Args:
        delimiter: between the fields of a CSV file.
        missing: words for a missing value.

    Raises:
        DataError: the file is damaged or its rows have different lengths; or it is Parquet, and
            pyarrow is not installed.
    """
    is_parquet = path.suffix == ".parquet"
    names, values, lines = _read_parquet(path) if is_parquet else _read_csv(path, delimiter)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: two columns are named '{twice[0]}'")
    if not values or not len(values[0]):
        raise DataError(f"{path}: no rows")
    columns = {name: _column(v, missing) for name, v in zip(names, values, strict=True)}
    return Columns(path, columns, lines)


def _column(values: np.ndarray, missing: Collection[str]) -> Column:
    if values.dtype == np.float64:
        return Column(values, np.isnan(values))
    return Column(values, np.array([v is None or v in missing for v in values]))


def _read_csv(path: Path, delimiter: str) -> tuple[list[str], list[np.ndarray], list[int]]:
    """Names, columns of words, and the line on which each row ends."""
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for row in reader:
                if row:  # an empty line is none
                    rows.append([field.strip() for field in row])
                    lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        line = f", line {reader.line_num}" if isinstance(error, csv.Error) else ""
        raise DataError(f"{path}{line}: cannot be read: {error}") from None
    names = rows.pop(0) if rows else []
    for row, number in zip(rows, lines[1:], strict=True):
        if len(row) != len(names):
            raise DataError(f"{path}, line {number}: {len(row)} fields, not {len(names)}")
    return names, [np.array(c, dtype=object) for c in zip(*rows, strict=True)], lines[1:]


def _read_parquet(path: Path) -> tuple[list[str], list[np.ndarray], None]:
    """Names, and columns of numbers or of words, None where missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need pyarrow: pip install 'metaloss[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {first_line(error)}") from None

    def values(column: Any) -> np.ndarray:
        items, kind = column.to_pylist(), column.type
        types = pyarrow.types
        if any(f(kind) for f in (types.is_integer, types.is_floating, types.is_boolean)):
            return np.array(items, dtype=np.float64)  # None becomes NaN
        return np.array([None if item is None else str(item) for item in items], dtype=object)

    return table.column_names, [values(column) for column in table.columns], None
