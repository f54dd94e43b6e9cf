"""Encoding of a table: how its columns become numbers, one or more for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from metaloss.errors import DataError
from metaloss.tasks.preparation.dialect import AMONG_NUMBERS, Dialect, is_text
from metaloss.tasks.preparation.later import pl
from metaloss.tasks.preparation.scaling import Scaling
from metaloss.tasks.preparation.tables import Rows, quoted, read

CHUNK = 1 << 16  #: rows that are encoded at once: their numbers stay in a core's cache
RARE = "(rare)"  #: what the input of the rarest categories is called


class Column(ABC):
    """How one column becomes inputs, by the training rows; plain data, kept with the run."""

    kind: ClassVar[str]
    words_of_kind: ClassVar[str]

    @abstractmethod
    def expression(self, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
        """What `encode` takes: numbers or words; null where missing."""

    @abstractmethod
    def encode(self, values: pl.Series) -> np.ndarray:
        """The inputs of some rows, not scaled, [n, inputs]; float64."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """What tells the inputs of the column apart."""

    @property
    def told(self) -> str:
        """What became of the column, in words."""
        count = len(self.inputs)
        return f"{self.words_of_kind}, {count} input{'s' * (count > 1)}"

    @property
    def scales(self) -> list[tuple[float, float]]:
        """The number that becomes 0, and what 1 is, of each input."""
        return [(0.0, 1.0)] * len(self.inputs)


@dataclass(frozen=True)
class Number(Column):
    """A column of numbers, of which the mean stands for what is missing."""

    kind = "number"
    words_of_kind = "numbers"
    inputs = ("",)
    mean: float
    deviation: float

    def expression(self, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
        return dialect.numbers(name, held)

    def encode(self, values: pl.Series) -> np.ndarray:
        return values.fill_null(self.mean).to_numpy()[:, None]

    @property
    def scales(self) -> list[tuple[float, float]]:
        return [(self.mean, self.deviation)]


@dataclass(frozen=True)
class Order(Column):
    """A column of words that have an order, from 0 on; the mean stands for what is missing."""

    kind = "order"
    words_of_kind = "words in order"
    inputs = ("",)
    words: tuple[str, ...]
    mean: float
    deviation: float

    def expression(self, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
        return dialect.words(name, held)

    def encode(self, values: pl.Series) -> np.ndarray:
        return ranks(values, self.words).fill_null(self.mean).to_numpy()[:, None]

    @property
    def scales(self) -> list[tuple[float, float]]:
        return [(self.mean, self.deviation)]


@dataclass(frozen=True)
class Date(Column):
    """A column of dates: days since 1970, and the places in the year, the week and the day."""

    kind = "date"
    words_of_kind = "dates"
    PERIODS: ClassVar[dict[str, float]] = {"year": 365.2425, "week": 7.0, "day": 1.0}
    mean: float
    deviation: float
    clock: bool  #: whether a time of the day is there

    @property
    def inputs(self) -> tuple[str, ...]:
        periods = list(self.PERIODS)[: 3 if self.clock else 2]
        return ("", *(f" {wave} of the {p}" for p in periods for wave in ("sine", "cosine")))

    def expression(self, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
        return dialect.days(name, held)

    def encode(self, values: pl.Series) -> np.ndarray:
        days = values.to_numpy()
        parts = [np.where(np.isnan(days), self.mean, days)]
        for period in list(self.PERIODS.values())[: 3 if self.clock else 2]:
            angle = 2 * np.pi * (days / period % 1)
            parts += [np.sin(angle), np.cos(angle)]
        return np.nan_to_num(np.stack(parts, 1))

    @property
    def scales(self) -> list[tuple[float, float]]:
        return [(self.mean, self.deviation), *[(0.0, 1.0)] * (len(self.inputs) - 1)]


@dataclass(frozen=True)
class Category(Column):
    """A column of words, an input for each; "" stands for what is missing.

    Attributes:
        words: that have an input, in the inputs' order.
        rare: whether one more input is there for all other words; else they are 0 in every input.
        held: what the training's file held: "text", "number" or "boolean". Of other files, those
            words are the same that are the same number, or the same in any case.
    """

    kind = "category"
    words_of_kind = "categories"
    words: tuple[str, ...]
    rare: bool
    held: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(f" ={word}" for word in (*self.words, *[RARE] * self.rare))

    def expression(self, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
        words = dialect.words(name, held).fill_null("")
        theirs = holds(held)
        if theirs == "text" and self.held == "text":
            return words
        # As in the training's file: the same boolean, or the same number.
        boolean = "boolean" in (theirs, self.held)
        known = {key(word, boolean): word for word in reversed(self.words)}
        known.pop(None, None)
        keys = words.str.to_lowercase() if boolean else words.cast(pl.Float64, strict=False)
        kind = pl.String() if boolean else pl.Float64()
        same = keys.replace_strict(
            pl.Series(list(known), dtype=kind),
            pl.Series(list(known.values()), dtype=pl.String),
            default=words,
            return_dtype=pl.String,
        )
        return pl.when(words.is_in(list(self.words))).then(words).otherwise(same)

    def encode(self, values: pl.Series) -> np.ndarray:
        found = np.zeros((len(values), len(self.inputs)))
        codes = ranks(values, self.words).fill_null(len(self.words)).cast(pl.Int64).to_numpy()
        known = np.flatnonzero(codes < len(self.inputs))
        found[known, codes[known]] = 1
        return found


COLUMNS: dict[str, Any] = {c.kind: c for c in (Number, Order, Date, Category)}


@dataclass(frozen=True)
class Encoding:
    """Columns as numbers, by the training rows.

    Attributes:
        columns: how each becomes inputs, in their order.
        dialect: what the words of a file mean.
    """

    columns: Mapping[str, Column]
    dialect: Dialect

    @property
    def features(self) -> tuple[str, ...]:
        """What each input is: a column, or a column and one of its categories."""
        return tuple(
            f"{name}{part}" for name, column in self.columns.items() for part in column.inputs
        )

    @property
    def scaling(self) -> Scaling:
        """To mean 0 and deviation 1 of the columns of numbers over the training rows."""
        scales = [scale for column in self.columns.values() for scale in column.scales]
        zero, unit = torch.tensor(scales, dtype=torch.float64).reshape(-1, 2).T
        return Scaling(zero, unit)

    def rows(self, path: Path) -> Rows:
        """The rows of another file; it may have other columns besides.

        Raises:
            DataError: the file is damaged, has no such column, or a word where numbers are.
        """
        return self.checked(read(path, self.dialect))

    def checked(self, rows: Rows) -> Rows:
        """The rows, which have the columns that are needed, of words or numbers as needed.

        Raises:
            DataError: they do not.
        """
        rows.require(tuple(self.columns))
        for name, column in self.columns.items():
            if not isinstance(column, Category):
                require_all(rows, name, column, self.dialect)
        return rows

    def read(self, path: Path) -> torch.Tensor:
        """The rows of another file, not scaled, [n, features], float64.

        Raises:
            DataError: see `rows`.
        """
        return torch.from_numpy(self.encode(self.frame(self.rows(path))))

    def frame(self, rows: Rows) -> pl.DataFrame:
        """The columns of a file as `encode` takes them."""
        kinds = rows.kinds
        return rows.collect(
            **{
                name: column.expression(name, kinds[name], self.dialect)
                for name, column in self.columns.items()
            }
        )

    def encode(self, frame: pl.DataFrame) -> np.ndarray:
        """Rows as numbers, not scaled, [n, features], float64."""
        parts = [column.encode(frame[name]) for name, column in self.columns.items()]
        return np.concatenate(parts, axis=1)

    def prepared(self, frame: pl.DataFrame, index: np.ndarray) -> torch.Tensor:
        """Some rows as a model sees them, [n, features], float32; a part at a time."""
        scaling, found = self.scaling, torch.empty(len(index), len(self.features))
        for start in range(0, len(index), CHUNK):
            part = frame[index[start : start + CHUNK]]
            found[start : start + CHUNK] = scaling.prepare(torch.from_numpy(self.encode(part)))
        return found

    def unknown(self, rows: Rows) -> list[str]:
        """A line for each column with words that have no input of their own."""
        frame, lines = self.frame(rows), []
        for name, column in self.columns.items():
            if not isinstance(column, Category):
                continue
            strange = frame[name].filter(~frame[name].is_in(list(column.words)))
            if len(strange):
                words = ", ".join(quoted(word) for word in strange.unique(maintain_order=True)[:3])
                become = "share the input of the rare" if column.rare else "are 0 in every input"
                lines.append(
                    f"{rows.place(name)}: {len(strange)} of {rows.count} rows have words that are "
                    f"no category of the training ({words}): they {become}"
                )
        return lines

    def plain(self) -> dict[str, Any]:
        """As plain data, to be kept with a run."""
        columns = {
            name: {"kind": column.kind, **asdict(column)}  # type: ignore[call-overload]
            for name, column in self.columns.items()
        }
        return {"columns": columns, "dialect": self.dialect.plain()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Encoding:
        """The encoding that `plain` described."""
        columns = {}
        for name, content in plain["columns"].items():
            arguments = {**content}
            made = COLUMNS[arguments.pop("kind")]
            if "words" in arguments:
                arguments["words"] = tuple(arguments["words"])
            columns[name] = made(**arguments)
        return cls(columns, Dialect.of(plain["dialect"]))


# --- by the training rows ---


def number(values: np.ndarray) -> tuple[float, float]:
    """Mean of the numbers that are there, and deviation where it stands for those that are not.

    Args:
        values: [n], NaN where missing; at least one is there.
    """
    mean = float(np.nanmean(values))
    deviation = float(np.sqrt(np.nansum((values - mean) ** 2) / len(values)))
    return mean, deviation if deviation > 0 else 1.0


def categories(values: pl.Series, held: pl.DataType, max_categories: int) -> Category:
    """The words of the training rows; of too many the rarest share one input.

    Which are the rarest, and which of the equally rare, is scikit-learn's rule.
    """
    counted = values.value_counts(name="count").sort(values.name)
    words = counted[values.name].to_list()
    rare: set[str] = set()
    if len(words) > max_categories:
        from sklearn.preprocessing import OneHotEncoder

        codes = np.repeat(np.arange(len(words)), counted["count"].to_numpy())
        grouping = OneHotEncoder(
            max_categories=max_categories, handle_unknown="infrequent_if_exist"
        ).fit(codes[:, None])
        rare = {words[code] for code in grouping.infrequent_categories_[0]}
    return Category(tuple(w for w in words if w not in rare), bool(rare), holds(held))


def ranks(values: pl.Series, words: Iterable[str]) -> pl.Series:
    """The place of each word among those, as Float64; null for any other."""
    words = list(words)
    return values.replace_strict(
        pl.Series(words, dtype=pl.String),
        pl.Series(range(len(words)), dtype=pl.Float64),
        default=None,
        return_dtype=pl.Float64,
    )


def holds(kind: pl.DataType) -> str:
    """What a file says a column holds: "text", "number" or "boolean"."""
    if is_text(kind):
        return "text"
    return "boolean" if kind == pl.Boolean else "number" if kind.is_numeric() else "text"


def key(word: str, boolean: bool) -> str | float | None:
    """What is the same in words that stand for the same boolean, or number."""
    if boolean:
        return word.lower()
    try:
        return float(word)
    except ValueError:
        return None


def require_all(rows: Rows, name: str, column: Column, dialect: Dialect) -> None:
    """Raises DataError naming the first word of a column that is no number, date or known word."""
    held = rows.kinds[name]
    words, value = dialect.words(name, held), column.expression(name, held, dialect)
    strange = words.is_not_null()
    if isinstance(column, Number):
        strange &= value.is_null() & ~words.str.to_lowercase().is_in(AMONG_NUMBERS)
        what = "number"
    elif isinstance(column, Order):
        strange &= ~words.is_in(list(column.words))
        what = f"word of its order, {', '.join(column.words)}"
    else:
        strange &= value.is_null() & ~words.str.to_lowercase().is_in(["null", "none", "nat"])
        what = "date"
    if (found := rows.first(strange, words)) is not None:
        raise DataError(f"{rows.place(name, found[0])}: {quoted(found[1])} is no {what}")
    if isinstance(column, Number):
        infinite = value.is_infinite()
        if (found := rows.first(infinite, words)) is not None:
            raise DataError(f"{rows.place(name, found[0])}: {quoted(found[1])} is no finite number")
