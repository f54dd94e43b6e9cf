"""Columns: what each column of a table holds, and the table of them that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from metaloss.tasks.preparation.dialect import DATE, Dialect, is_text
from metaloss.tasks.preparation.encoding import Category, Column, Date, Number
from metaloss.tasks.preparation.tables import Rows

SAMPLE = 1000  #: rows by which most columns show that they are none of numbers
SHOWN = 3  #: examples of a column
WIDTH = 48  #: characters of them at most


def kinds(rows: Rows, names: Sequence[str], dialect: Dialect) -> dict[str, type[Column]]:
    """What each column holds: numbers or dates if every value is one, else categories.

    Among numbers the ordinary words for what is missing are no values.
    """
    held = rows.kinds
    found: dict[str, type[Column]] = {}
    asked: dict[str, pl.Expr] = {}
    sample = rows.frame.select(names).head(SAMPLE)
    for name in names:
        kind = held[name]
        if kind in (pl.Date, pl.Datetime):
            found[name] = Date
        elif not is_text(kind):
            found[name] = Category if kind == pl.Boolean or kind == pl.Time else Number
        else:
            words = dialect.words(name, kind)
            may = sample.select(
                (words.is_null() | dialect.is_number(name, kind)).all().alias("number"),
                (words.is_null() | words.str.contains(DATE)).all().alias("date"),
                words.is_null().all().alias("missing"),
            ).collect()
            is_number, is_date, is_missing = may.row(0)
            if is_number:
                numbers = dialect.numbers(name, kind)
                every = (words.is_null() | dialect.is_number(name, kind)).all()
                none = words.is_null().all()
                asked[name] = (every & (numbers.is_not_null().any() | none)).cast(pl.Int8)
            if is_date:
                days = dialect.days(name, kind)
                dates = (words.is_null() | days.is_not_null()).all() & words.is_not_null().any()
                asked[name] = asked.get(name, pl.lit(0, pl.Int8)) + 2 * dates.cast(pl.Int8)
    if asked:
        for name, answer in zip(asked, rows.collect(**asked).row(0), strict=True):
            # A column of nothing is one of numbers, as which it is refused.
            found[name] = Number if answer & 1 else Date if answer else Category
    return {name: found.get(name, Category) for name in names}


@dataclass(frozen=True)
class Line:
    """A column in the table that a person reads."""

    name: str
    became: str
    missing: int
    held: str  #: categories with their counts, or examples
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """What stands in the table."""
        return (self.name, self.became, f"{self.missing:,}" if self.missing else "", self.held)


def lines(
    rows: Rows, became: Mapping[str, str | Column], frame: pl.DataFrame, dialect: Dialect
) -> list[Line]:
    """The line of each column.

    Args:
        rows: of the file.
        became: what became of each column, in words or as inputs.
        frame: of the file, the columns of words as words, "" where one is missing.
        dialect: of the file.
    """
    held, some = rows.kinds, rows.frame.head(SAMPLE).collect()
    absent = {}
    for name, column in became.items():
        is_number = isinstance(column, Number) and is_text(held[name])
        asked = (dialect.numbers if is_number else dialect.words)(name, held[name])
        absent[name] = asked.is_null().sum()
    missing = dict(zip(absent, rows.collect(**absent).row(0), strict=True))
    found = []
    for name, column in became.items():
        note = ""
        if name in frame and frame[name].dtype == pl.String:
            counted = frame[name].rename("word").value_counts(name="count")
            counted = counted.sort("count", "word", descending=[True, False])
            shown = ", ".join(f"{word or '(missing)'} {n:,}" for word, n in counted.head(5).rows())
            text = f"{len(counted):,}: {_short(shown)}"
            note = _hint(counted["word"], dialect) if isinstance(column, Category) else ""
        else:
            words = some.select(dialect.words(name, held[name]).alias("word")).drop_nulls()
            text = _short(", ".join(words["word"].head(SHOWN)))
        words = column if isinstance(column, str) else column.told
        found.append(Line(name, words, missing[name], text, note))
    return found


def told(lines: Sequence[Line]) -> list[str]:
    """The table of all columns, and the notes beneath it."""
    heads = ("column", "became", "missing", "examples, or categories by their counts")
    cells = [heads, *(one.cells() for one in lines)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads) - 1)]
    table = [
        "  ".join([*(c.ljust(w) for c, w in zip(row, [*widths], strict=False)), row[-1]]).rstrip()
        for row in cells
    ]
    return [*table, *(f"note: column '{one.name}' {one.note}" for one in lines if one.note)]


def _hint(words: pl.Series, dialect: Dialect) -> str:
    """What would make numbers of categories, most of which look like some."""
    present = words.filter(words != "").rename("word")
    if not len(present):
        return ""
    frame, kind = present.to_frame(), pl.String()
    for changes, setting in HINTS:
        other = replace(dialect, **changes)
        alike = frame.select(other.is_number("word", kind).all()).item()
        if alike and frame.select(other.numbers("word", kind).is_not_null().any()).item():
            return f"would be of numbers ('{present[0]}') with {setting}"
    is_number = frame.select(dialect.is_number("word", kind)).to_series()
    others = present.filter(~is_number)
    if len(others) and 2 * len(others) < len(present):
        return (
            f"is of categories, since {len(others)} of its {len(present)} words are no numbers "
            f"('{others[0]}'): tasks.table.missing can name them"
        )
    return ""


HINTS: tuple[tuple[Mapping[str, str | bool], str], ...] = (
    ({"percent": True}, "tasks.table.percent = True"),
    ({"decimal": ","}, "tasks.table.decimal = ','"),
    ({"decimal": ",", "percent": True}, "tasks.table.decimal = ',' and percent = True"),
    ({"thousands": ","}, "tasks.table.thousands = ','"),
    ({"thousands": "'"}, 'tasks.table.thousands = "\'"'),
    ({"thousands": " "}, "tasks.table.thousands = ' '"),
    ({"thousands": ".", "decimal": ","}, "tasks.table.thousands = '.' and decimal = ','"),
)


def _short(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
