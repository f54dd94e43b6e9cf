"""Columns: what each column of a table holds, and the table of them that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metaloss.tasks.preparation.dialect import Dialect, is_among_numbers, is_text
from metaloss.tasks.preparation.encoding import Category, Column, Date, Number
from metaloss.tasks.preparation.later import pl
from metaloss.tasks.preparation.tables import Rows

SAMPLE = 1000  #: rows by which most columns show that they are none of numbers
SHOWN = 3  #: examples of a column
WIDTH = 48  #: characters of them at most


def typed(
    rows: Rows, names: Sequence[str], told: Mapping[str, Column], dialect: Dialect
) -> tuple[dict[str, Column], pl.DataFrame]:
    """What each column holds, and its values: numbers or dates if every value is one, else words.

    Among numbers the ordinary words for what is missing are no values. Numbers and days are
    Float64, null where missing; words are "" there.

    Args:
        rows: of the file.
        names: of the columns.
        told: columns of which it is said what they are.
        dialect: of the file.
    """
    held, sample = rows.kinds, rows.frame.select(names).head(SAMPLE).collect()
    found = {
        name: told[name] if name in told else _guess(sample, name, held[name], dialect)
        for name in names
    }
    # Most columns are what their first rows are; the others are asked for once more.
    frame = rows.collect(**{n: _values(c, n, held[n], dialect) for n, c in found.items()})
    for name, guess in found.items():
        if name in told or isinstance(guess, Category) or not frame[name].null_count():
            continue
        found[name] = _confirmed(rows, name, guess, dialect)
        if found[name] != guess:
            values = _values(found[name], name, held[name], dialect)
            frame = frame.with_columns(rows.collect(**{name: values})[name])
    return found, frame


#: What columns are before the training rows say more.
NUMBER, WORDS = Number(0.0, 1.0), Category((), True, "")
DAY, DATE = (Date(0.0, 1.0, clock) for clock in (False, True))


def _guess(sample: pl.DataFrame, name: str, held: pl.DataType, dialect: Dialect) -> Column:
    """What a column is by its first rows."""
    if held in (pl.Date, pl.Datetime):
        return DATE
    if not is_text(held):
        return WORDS if held == pl.Boolean or held == pl.Time else NUMBER
    for column in (NUMBER, DAY, DATE):
        both = sample.select(
            values=_values(column, name, held, dialect), words=dialect.words(name, held)
        )
        words = both.filter(pl.col("values").is_null())["words"].unique().to_list()
        if _are_missing(words, column):
            return column
    return WORDS


def _confirmed(rows: Rows, name: str, guess: Column, dialect: Dialect) -> Column:
    """What a column is by all of its rows, some of which are no values of what was guessed."""
    held = rows.kinds[name]
    for column in (guess, DATE) if isinstance(guess, Date) else (guess,):
        both = rows.frame.select(
            values=_values(column, name, held, dialect), words=dialect.words(name, held)
        )
        words = both.filter(pl.col("values").is_null()).select("words").unique().collect()
        if _are_missing(words["words"].to_list(), column):
            return column
    return WORDS


def _are_missing(words: Sequence[str | None], column: Column) -> bool:
    """Whether words that are no values of such a column stand for missing ones."""
    if isinstance(column, Number):
        return all(map(is_among_numbers, words))
    return all(word is None for word in words)


def _values(column: Column, name: str, held: pl.DataType, dialect: Dialect) -> pl.Expr:
    if isinstance(column, Category):
        return dialect.words(name, held).fill_null("")
    if column == DAY:
        return dialect.days(name, held, clock=False)
    return column.expression(name, held, dialect)


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
    others = [name for name in became if name not in frame]
    absent = {name: dialect.words(name, held[name]).is_null().sum() for name in others}
    missing = dict(zip(others, rows.collect(**absent).row(0) if absent else (), strict=True))
    for name in frame.columns:
        is_words = frame[name].dtype == pl.String
        missing[name] = (frame[name] == "").sum() if is_words else frame[name].null_count()
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
            first = some.select(dialect.words(name, held[name]).alias("word")).drop_nulls()
            text = _short(", ".join(first["word"].head(SHOWN)))
        told = column if isinstance(column, str) else column.told
        found.append(Line(name, told, missing[name], text, note))
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
        is_none = frame.select(other.numbers("word", kind).is_null()).to_series()
        if not is_none.all() and _are_missing(present.filter(is_none).to_list(), NUMBER):
            return f"would be of numbers ('{present[0]}') with {setting}"
    others = present.filter(frame.select(dialect.numbers("word", kind).is_null()).to_series())
    if len(others) and 2 * len(others) < len(present):
        return (
            f"is of categories, since {len(others)} of its {len(present)} words are no numbers "
            f"('{others[0]}'): tasks.table.missing can name them"
        )
    return ""


HINTS: tuple[tuple[dict[str, Any], str], ...] = (
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
