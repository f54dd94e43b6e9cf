"""Tables as rows of text, for any format; and how numbers are written in them."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from metaloss.experiments.groups import Group
from metaloss.experiments.reports.paper import Value
from metaloss.experiments.statistics import Comparison, Summary

NOT_RUN = "not run"
DASH = "–"
GIB = 2**30
COMPARISON_HEAD = ("pairs", "difference", "95 % interval", "± examples", "p", "caution")
COMPARISONS = (
    "Differences of the test error of runs with the same seed; negative: the first is better. "
    "Interval: of the mean difference over other seeds, by Student's t, which takes differences "
    "for normal. ± examples: standard error of the difference over other test examples. p: "
    "Wilcoxon's signed-rank test over seeds, two-sided, corrected by Holm within the comparisons "
    "of one row; a run that diverged has the worst rank. Below 6 pairs it cannot reach .05, and no "
    "p is given."
)


@dataclass(frozen=True)
class Cell:
    """Text, and what it is: "ours", "best" of a row, "paper", "missing", or a "name"."""

    text: str
    role: str = "ours"


@dataclass
class Table:
    """Rows of cells under a head.

    Attributes:
        title: one line.
        caption: what the numbers are.
        head: of the columns.
        rows: cells, as many as the head has.
        names: how many columns, from the left, name the row; a name that repeats the one above is
            empty.
        notes: footnotes.
    """

    title: str
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    names: int
    notes: list[str] = field(default_factory=list)


class Footnotes:
    """Letters for what a row's runs differ in."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The letter of a footnote, with a space before; nothing for no text."""
        if not text:
            return ""
        count = len(self.notes)
        letter = string.ascii_lowercase[count % 26] * (count // 26 + 1)
        return f" ({self.notes.setdefault(text, letter)})"

    def lines(self) -> list[str]:
        """The footnotes."""
        return [f"({letter}) {text}" for text, letter in self.notes.items()]


def number(value: float) -> str:
    """A number as the paper prints it: `.0091`; in powers of ten where that shows no digit."""
    if value and (abs(value) < 5e-5 or abs(value) >= 1e4):
        return f"{value:.1e}"
    sign = "-" if value < 0 else ""
    return sign + f"{abs(value):.4f}".removeprefix("0")


def signed(value: float) -> str:
    """A difference, with its sign."""
    return ("+" if value > 0 else "") + number(value)


def p_value(value: float | None) -> str:
    """A p-value, two digits."""
    return DASH if value is None else "<.0001" if value < 1e-4 else f"{value:.2g}".removeprefix("0")


def plus_minus(value: Summary | Value) -> str:
    """`.0091±.0004`, or the mean alone where there is no deviation."""
    deviation = "" if value.deviation is None else f"±{number(value.deviation)}"
    return number(value.mean) + deviation


def outcome(group: Group | None) -> str:
    """`.0091±.0004 (9; 1 diverged)`: the mean over seeds, n, and runs that need a word.

    These have no number, or made base steps on the task loss where their learned loss was not well.
    """
    if group is None:
        return NOT_RUN
    words = [f"{count} {status}" for status, count in group.failures.items()]
    if group.fallen_back:
        words.append(f"{group.fallen_back} in part by the task loss")
    if group.summary is None:
        return ", ".join(words)
    return f"{plus_minus(group.summary)} ({group.summary.n}{'; ' * bool(words)}{', '.join(words)})"


def comparison_cells(comparison: Comparison) -> tuple[Cell, ...]:
    """What stands under `COMPARISON_HEAD`."""
    low_high = comparison.interval
    unpaired = f" (+{comparison.unpaired} unpaired)" if comparison.unpaired else ""
    texts = (
        f"{comparison.n}{unpaired}",
        DASH if comparison.difference is None else signed(comparison.difference),
        f"[{signed(low_high[0])}, {signed(low_high[1])}]" if low_high else DASH,
        DASH if comparison.examples is None else number(comparison.examples),
        p_value(comparison.wilcoxon),
        comparison.caution,
    )
    return tuple(map(Cell, texts))


def without_repeats(rows: list[tuple[Cell, ...]], names: int) -> list[tuple[Cell, ...]]:
    """The rows with names left out that repeat those of the row above."""
    out: list[tuple[Cell, ...]] = []
    above: tuple[Cell, ...] = ()
    for row in rows:
        repeats = row[:names] == above[:names]
        out.append((*([Cell("", "name")] * names), *row[names:]) if repeats else row)
        above = row
    return out
