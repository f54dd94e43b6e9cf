"""Tables: results, run times and comparisons as rows of text, for any format."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from metaloss.analysis.groups import Group
from metaloss.analysis.paper import Value
from metaloss.analysis.placement import Filled, Line, Result
from metaloss.analysis.runs import Run, mean_of
from metaloss.analysis.settings import Difference, describe
from metaloss.analysis.statistics import Comparison, Summary, compare, corrected

NOT_RUN = "not run"
DASH = "–"
GIB = 2**30


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


class _Footnotes:
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


def plus_minus(value: Summary | Value) -> str:
    """`.0091±.0004`, or the mean alone where there is no deviation."""
    deviation = "" if value.deviation is None else f"±{number(value.deviation)}"
    return number(value.mean) + deviation


def outcome(group: Group | None) -> str:
    """`.0091±.0004 (9; 1 diverged)`: the mean over seeds, n, and the runs without a number."""
    if group is None:
        return NOT_RUN
    failures = ", ".join(f"{count} {status}" for status, count in group.failures.items())
    if group.summary is None:
        return failures
    return f"{plus_minus(group.summary)} ({group.summary.n}{'; ' * bool(failures)}{failures})"


def results(filled: Filled) -> Table:
    """A table of test errors: our row above the paper's, a row for each difference in settings."""
    table, footnotes = filled.table, _Footnotes()
    rows = []
    for line in filled.lines:
        if _is_run(line):
            best = _best(line)
            mark = footnotes.mark(describe(line.difference))
            cells = tuple(_cell(result, result is best) for result in line.results)
            rows.append((*_names(line, f"ours{mark}"), *cells))
        if not line.difference:
            rows.append(
                _paper_row(line, [plus_minus(r.paper) if r.paper else DASH for r in line.results])
            )
    return Table(
        f"Table {table.number}. {table.title}",
        f"{table.caption} Ours: mean±sample standard deviation (n seeds); paper: 10 seeds.",
        ("Task", "Model", "", *(column.title for column in table.columns)),
        _without_repeats(rows, 2),
        3,
        _differing(footnotes),
    )


def run_times(filled: Filled, hours: Mapping[str, tuple[float, ...]]) -> Table:
    """Table 2: hours end to end, and peak memory, of the runs of Table 1."""
    footnotes, rows = _Footnotes(), []
    for line in filled.lines:
        machines = sorted(
            {run.machine for r in line.results if r.group for run in r.group.finished}
        )
        for machine in machines:
            runs = [_on(machine, result.group) for result in line.results]
            mark = footnotes.mark(
                f"{machine}{'; ' * bool(line.difference)}{describe(line.difference)}"
            )
            rows.append((*_names(line, f"ours{mark}"), *map(Cell, _times(_hours(runs)))))
            memory = [mean_of(of_method, "peak_memory_bytes") for of_method in runs]
            peaks = (f"{peak / GIB:.2f} GiB" if peak else DASH for peak in memory)
            rows.append((*_names(line, "memory"), *map(Cell, peaks)))
        if not line.difference:
            rows.append(_paper_row(line, _times(hours[line.pair.name])))
    return Table(
        "Table 2. Run times and memory",
        "Mean hours of a finished run from its start to its result, initialisation included, and "
        "(×) how many times the baseline's; peak memory of the GPU's tensors, or of the whole "
        "process on a CPU. The paper's hours are of one NVIDIA RTX A5000: compare the ratios. "
        "Runs that shared a machine with others took longer than they would have alone.",
        ("Task", "Model", "", *(column.title for column in filled.table.columns)),
        _without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def tests(filled: Filled) -> Table | None:
    """The paired comparisons of a table; None if no two of its cells share a seed."""
    table, footnotes = filled.table, _Footnotes()
    focus = table.columns[table.focus].title
    rows = []
    for line in filled.lines:
        mark = footnotes.mark(describe(line.difference))
        for result in line.results:
            if result.comparison is not None:
                title = f"{focus} - {result.column.title}{mark}"
                rows.append((*_names(line, title), *_comparison(result.comparison)))
    if not rows:
        return None
    return Table(
        f"Table {table.number}, paired by seed",
        COMPARISONS,
        ("Task", "Model", "compared", *COMPARISON_HEAD),
        _without_repeats(rows, 2),
        3,
        _differing(footnotes),
    )


COMPARISON_HEAD = ("pairs", "difference", "95 % interval", "p (t)", "p (Wilcoxon)", "caution")
COMPARISONS = (
    "Differences of the test error of runs with the same seed; negative: the first is better. "
    "Interval: BCa bootstrap of the mean difference. p: two-sided, corrected by Holm within the "
    "comparisons of one row. The t-test takes the differences for normal. Below 6 pairs Wilcoxon's "
    "p cannot reach .05, nothing speaks for normality, and no p is given."
)


def other(groups: Sequence[Group]) -> Table:
    """All groups that no table of the paper has a place for, by task, base model and method."""
    rows, footnotes = [], _Footnotes()
    for group in groups:
        seconds = mean_of(group.finished, "seconds")
        memory = mean_of(group.finished, "peak_memory_bytes")
        texts = (
            (group.metric or DASH).replace("_", " "),
            outcome(group),
            f"{seconds:.3g}" if seconds else DASH,
            f"{memory / GIB:.2f}" if memory else DASH,
        )
        rows.append((*_other_names(group, groups, footnotes), *map(Cell, texts)))
    return Table(
        "Runs outside the paper's tables",
        "Test error: mean±sample standard deviation (n seeds); seconds and peak memory of a "
        "finished run, with its initialisation.",
        ("Task", "Model", "Method", "metric", "test", "seconds", "GiB"),
        _without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def other_tests(groups: Sequence[Group]) -> Table | None:
    """The groups outside the paper's tables against the baseline; None where there is none."""
    rows, footnotes = [], _Footnotes()
    for group, comparison in against_baseline(groups):
        task, backbone, method = _other_names(group, groups, footnotes)
        compared = Cell(f"{method.text} - baseline", "name")
        rows.append((task, backbone, compared, *_comparison(comparison)))
    if not rows:
        return None
    return Table(
        "Runs outside the paper's tables, paired by seed",
        COMPARISONS.replace("one row", "one task and model"),
        ("Task", "Model", "compared", *COMPARISON_HEAD),
        _without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def alike(group: Group, groups: Sequence[Group]) -> list[Group]:
    """The groups of the same task, base model and method, itself among them."""
    return [g for g in groups if (g.pair, g.method) == (group.pair, group.method)]


def differing(group: Group, members: Sequence[Group]) -> Difference:
    """The parameters in which a group differs from others, with its own values."""
    found = {
        item: None
        for member in members
        if member is not group
        for item in group.settings.difference(member.settings)
    }
    return tuple(sorted(found, key=lambda item: item[0]))


def against_baseline(groups: Sequence[Group]) -> Iterator[tuple[Group, Comparison]]:
    """Each group compared with the baseline of its pair whose settings are nearest."""
    for pair in dict.fromkeys(group.pair for group in groups):
        of_pair = [group for group in groups if group.pair == pair]
        baselines = [group for group in of_pair if group.method == "baseline"]
        made = {}
        for group in of_pair:
            if group in baselines or not baselines:
                continue
            nearest = min(baselines, key=lambda b: len(group.settings.difference(b.settings)))
            comparison = compare(group.tests, nearest.tests)
            if comparison is not None:
                made[group] = comparison
        yield from zip(made, corrected(list(made.values())), strict=True)


def _comparison(comparison: Comparison) -> tuple[Cell, ...]:
    low_high = comparison.interval
    unpaired = f" (+{comparison.unpaired} unpaired)" if comparison.unpaired else ""
    texts = (
        f"{comparison.n}{unpaired}",
        _signed(comparison.difference),
        f"[{_signed(low_high[0])}, {_signed(low_high[1])}]" if low_high else DASH,
        _p(comparison.t),
        _p(comparison.wilcoxon),
        comparison.caution,
    )
    return tuple(map(Cell, texts))


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _p(value: float | None) -> str:
    return DASH if value is None else "<.0001" if value < 1e-4 else f"{value:.2g}".removeprefix("0")


def _cell(result: Result, best: bool) -> Cell:
    role = "missing" if result.group is None else "best" if best else "ours"
    return Cell(outcome(result.group), role)


def _best(line: Line) -> Result | None:
    """The lowest mean of a row, if there are two to compare."""
    means = {r.group.summary.mean: r for r in line.results if r.group and r.group.summary}
    return means[min(means)] if len(means) > 1 else None


def _is_run(line: Line) -> bool:
    return any(result.group is not None for result in line.results)


def _paper_row(line: Line, texts: Sequence[str]) -> tuple[Cell, ...]:
    """The paper's numbers; where none of a row's runs are there, it stands for both."""
    source = "paper" if _is_run(line) else f"paper (ours {NOT_RUN})"
    return (*_names(line, source), *(Cell(text, "paper") for text in texts))


def _other_names(
    group: Group, groups: Sequence[Group], footnotes: _Footnotes
) -> tuple[Cell, Cell, Cell]:
    mark = footnotes.mark(describe(differing(group, alike(group, groups))))
    task, backbone = group.pair
    return Cell(task, "name"), Cell(backbone, "name"), Cell(group.method + mark, "name")


def _names(line: Line, source: str) -> tuple[Cell, ...]:
    return tuple(Cell(text, "name") for text in (line.pair.task, line.pair.model, source))


def _differing(footnotes: _Footnotes) -> list[str]:
    lines = footnotes.lines()
    return ["Runs that differ from the shipped gin files:", *lines] if lines else []


def _on(machine: str, group: Group | None) -> list[Run]:
    return [run for run in group.finished if run.machine == machine] if group else []


def _hours(runs: Sequence[Sequence[Run]]) -> list[float | None]:
    means = [mean_of(of_method, "seconds") for of_method in runs]
    return [mean / 3600 if mean is not None else None for mean in means]


def _times(hours: Sequence[float | None]) -> list[str]:
    """Hours, and how many times the first they are."""
    first = hours[0]
    return [
        DASH
        if value is None
        else _hours_text(value) + (f" ({value / first:.1f}×)" if first else "")
        for value in hours
    ]


def _hours_text(hours: float) -> str:
    text = f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"
    return text.removeprefix("0") + " h"


def _without_repeats(rows: list[tuple[Cell, ...]], names: int) -> list[tuple[Cell, ...]]:
    """The rows with names left out that repeat those of the row above."""
    out: list[tuple[Cell, ...]] = []
    above: tuple[Cell, ...] = ()
    for row in rows:
        repeats = row[:names] == above[:names]
        out.append((*([Cell("", "name")] * names), *row[names:]) if repeats else row)
        above = row
    return out
