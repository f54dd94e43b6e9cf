"""Rows that are in memory: dicts and data frames as a table, with a file's errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metaloss.errors import DataError, did_you_mean
from metaloss.tasks.preparation.later import pl
from metaloss.tasks.preparation.tables import Rows

PLACE = Path("the rows")  #: what errors call them


def of_frame(frame: Any) -> Rows:
    """A data frame: of polars, pandas, or any that speaks Arrow.

    Raises:
        DataError: it is no data frame, or has no rows.
    """
    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    if type(frame).__module__.partition(".")[0] == "pandas":  # without pyarrow, too
        return of_dicts(frame.to_dict("records"))
    if not isinstance(frame, pl.DataFrame):
        if not hasattr(frame, "__arrow_c_stream__"):
            kind = type(frame).__name__
            raise DataError(
                f"{kind} is no table: give a file, dicts by column, or a data frame of rows"
            )
        frame = pl.DataFrame(frame)
    if not frame.height:
        raise DataError(f"{PLACE}: none are there")
    return Rows(PLACE, frame.lazy(), frame.height, None)


def of_dicts(rows: Sequence[Mapping[str, Any]], needed: Sequence[str] = ()) -> Rows:
    """A value of each column by its name, a dict a row; None, or NaN, where one is missing.

    Args:
        needed: columns that each row must say, be it None.

    Raises:
        DataError: there is no row, a row is none, or lacks a column.
    """
    if not rows:
        raise DataError(f"{PLACE}: none are there")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise DataError(f"{PLACE}, row {number}: {kind} is no row: give a dict by column")
        for name in needed:
            if name not in row:
                near, known = did_you_mean(name, row), ", ".join(row)
                raise DataError(
                    f"{PLACE}, row {number}: no '{name}'{near} · it has: {known} (None stands for "
                    "a missing value)"
                )
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    return Rows(PLACE, pl.DataFrame(columns).lazy(), len(rows), None)


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    """Values of one kind as they are; of several kinds, the words that they are written as."""
    values = [None if value is None or value != value else value for value in values]
    try:
        return pl.Series(name, values)
    except (TypeError, pl.exceptions.PolarsError):
        there = [value for value in values if value is not None]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in there):
            return pl.Series(name, [None if v is None else float(v) for v in values])
        return pl.Series(name, [None if v is None else str(v) for v in values])
