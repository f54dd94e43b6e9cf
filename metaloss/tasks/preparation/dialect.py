"""Dialect: how numbers, dates and missing values are written in the text of a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from metaloss.tasks.preparation.later import pl

#: What stands for a missing value, where nothing else is said.
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null")
#: What stands for a missing value among numbers, in any case, besides the dialect's own words.
AMONG_NUMBERS = (
    *("null", "none", "nil", "na", "n/a", "n.a.", "n.a", "nan", "-nan", "<na>", "#n/a", "#na"),
    *("missing", "unknown", "not available", "-", "--", "---", ".", "..", "?", "nat"),
)
DATE = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?"
    r"(?:\s?(Z|UTC|[+-]\d{2}:?\d{2}))?)?$"
)
DAY = 86_400.0  #: seconds


@dataclass(frozen=True)
class Dialect:
    """The words of a file.

    Attributes:
        missing: words for a missing value; "" is what stands between two delimiters.
        delimiter, quote: of a CSV file's fields; a quote of "" stands for itself.
        decimal: "." or ",".
        thousands: between the digits of large numbers; "": nothing is.
        percent: whether "12 %" is the number 12.
        encoding: of a CSV file, in Python's words.
        line_breaks: whether a quoted field may hold lines that look like rows.
    """

    missing: tuple[str, ...]
    delimiter: str = ","
    quote: str = '"'
    decimal: str = "."
    thousands: str = ""
    percent: bool = False
    encoding: str = "utf-8"
    line_breaks: bool = False

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Dialect:
        """The dialect that `asdict` described."""
        return cls(**{**plain, "missing": tuple(plain["missing"])})

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "missing": list(self.missing)}

    def words(self, name: str, kind: pl.DataType) -> pl.Expr:
        """A column as the text that stands there, without spaces around it; null where missing.

        Args:
            name: of the column.
            kind: what the file says that it holds; text where it does not say.
        """
        column = pl.col(name)
        if kind == pl.Boolean:
            return pl.when(column).then(pl.lit("True")).when(~column).then(pl.lit("False"))
        if kind.is_float():
            return column.fill_nan(None).cast(pl.String)
        if kind.is_decimal():
            return column.cast(pl.Float64).cast(pl.String)
        if kind == pl.Datetime:
            return column.dt.to_string("%Y-%m-%d %H:%M:%S%.f")
        text = column.cast(pl.String)
        if not is_text(kind):
            return text
        text = text.str.strip_chars()
        return pl.when(~text.is_in(list(self.missing))).then(text)

    def numbers(self, name: str, kind: pl.DataType) -> pl.Expr:
        """A column as Float64; null where missing, and where no number stands.

        `True` and `False` are 1 and 0.
        """
        if kind.is_numeric() or kind == pl.Boolean:
            return pl.col(name).cast(pl.Float64).fill_nan(None)
        if kind == pl.Null:
            return pl.col(name).cast(pl.Float64)
        # Words for what is missing are no numbers; only where one looks like a number, as -999, is
        # it to be looked for.
        alike = any(_is_float(word) for word in self.missing)
        text = self.words(name, kind) if alike else pl.col(name).cast(pl.String).str.strip_chars()
        if self.percent:
            text = text.str.strip_suffix("%").str.strip_chars_end()
        if self.thousands:
            text = text.str.replace_all(self.thousands, "", literal=True)
        if self.decimal == ",":
            # A point in such a number is a thousand's or a mistake, and no decimal one.
            plain = text.str.replace(",", ".", literal=True)
            text = pl.when(~text.str.contains(".", literal=True)).then(plain)
        return text.cast(pl.Float64, strict=False).fill_nan(None)

    def days(self, name: str, kind: pl.DataType, clock: bool = True) -> pl.Expr:
        """A column of dates as days since 1970-01-01, Float64; null where none stands.

        Args:
            name, kind: see `words`.
            clock: read a time of the day too, where there is one.
        """
        if kind == pl.Date:
            return pl.col(name).cast(pl.Int32).cast(pl.Float64)
        if kind == pl.Datetime:
            return pl.col(name).dt.epoch("us").cast(pl.Float64) / (DAY * 1e6)
        words = self.words(name, kind)
        if not clock:
            return words.str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Float64)

        def part(group: int) -> pl.Expr:
            return words.str.extract(DATE, group)

        offset = part(5).str.replace_many(["Z", "UTC", ":"], ["+0000", "+0000", ""])
        minutes = offset.str.slice(1, 2).cast(pl.Float64) * 60 + offset.str.slice(3, 2).cast(
            pl.Float64
        )
        away = pl.when(offset.str.starts_with("-")).then(-minutes).otherwise(minutes).fill_null(0)
        seconds = (
            part(2).cast(pl.Float64).fill_null(0) * 3600
            + (part(3).cast(pl.Float64).fill_null(0) - away) * 60
            + part(4).cast(pl.Float64).fill_null(0)
        )
        day = part(1).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Float64)
        return day + seconds / DAY


def is_among_numbers(word: str | None) -> bool:
    """Whether a word that is no number stands for a missing one among numbers."""
    return word is None or word.lower() in AMONG_NUMBERS


def _is_float(word: str) -> bool:
    try:
        return float(word) == float(word)
    except ValueError:
        return False


def is_text(kind: pl.DataType) -> bool:
    """Whether a column holds words, of which the dialect says what they mean."""
    return kind in (pl.String, pl.Categorical, pl.Enum)
