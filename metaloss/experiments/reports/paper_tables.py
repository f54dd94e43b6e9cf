"""The paper's tables with our runs in them: test errors, run times and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metaloss.experiments.groups import Group
from metaloss.experiments.records import Record, mean_of
from metaloss.experiments.reports.placement import Filled, Line, Result
from metaloss.experiments.reports.tables import (
    COMPARISON_HEAD,
    COMPARISONS,
    DASH,
    GIB,
    NOT_RUN,
    Cell,
    Footnotes,
    Table,
    comparison_cells,
    number,
    outcome,
    p_value,
    plus_minus,
    signed,
    without_repeats,
)
from metaloss.experiments.settings import told
from metaloss.experiments.statistics import welch

PAPER_SEEDS = 10


def results(filled: Filled) -> Table:
    """A table of test errors: our row above the paper's, a row for each difference in settings."""
    table, footnotes = filled.table, Footnotes()
    rows = []
    for line in filled.lines:
        if _is_run(line):
            best = _best(line)
            mark = footnotes.mark(told(line.difference))
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
        without_repeats(rows, 2),
        3,
        _differing(footnotes),
    )


def run_times(filled: Filled, hours: Mapping[str, tuple[float, ...]]) -> Table:
    """Table 2: hours end to end, and peak memory, of the runs of Table 1."""
    footnotes, rows = Footnotes(), []
    for line in filled.lines:
        machines = sorted(
            {run.machine for r in line.results if r.group for run in r.group.finished}
        )
        for machine in machines:
            runs = [_on(machine, result.group) for result in line.results]
            mark = footnotes.mark(f"{machine}{'; ' * bool(line.difference)}{told(line.difference)}")
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
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def tests(filled: Filled) -> Table | None:
    """The paired comparisons of a table; None if no two of its cells share a seed."""
    table, footnotes = filled.table, Footnotes()
    focus = table.columns[table.focus].title
    rows = []
    for line in filled.lines:
        mark = footnotes.mark(told(line.difference))
        for result in line.results:
            if result.comparison is not None:
                title = f"{focus} - {result.column.title}{mark}"
                rows.append((*_names(line, title), *comparison_cells(result.comparison)))
    if not rows:
        return None
    return Table(
        f"Table {table.number}, paired by seed",
        COMPARISONS,
        ("Task", "Model", "compared", *COMPARISON_HEAD),
        without_repeats(rows, 2),
        3,
        _differing(footnotes),
    )


def beside_paper(filled: Filled) -> Table | None:
    """Our means less the paper's, by Welch's test; None where no cell has two seeds."""
    rows = []
    for line in filled.lines:
        for result in line.results:
            summary = result.group.summary if result.group else None
            if summary is None or result.paper is None:
                continue
            found = welch(summary, result.paper.mean, result.paper.deviation, PAPER_SEEDS)
            if found is not None:
                texts = (
                    str(summary.n),
                    signed(found.difference),
                    number(found.error),
                    f"[{signed(found.interval[0])}, {signed(found.interval[1])}]",
                    p_value(found.p),
                )
                rows.append((*_names(line, result.column.title), *map(Cell, texts)))
    if not rows:
        return None
    return Table(
        f"Table {filled.table.number}, beside the paper",
        "Our mean over finished runs less the paper's, its standard error, a 95 % interval and "
        "the two-sided p by Welch's test from the paper's mean and deviation (taken as ddof 1, n = "
        "10). Not corrected for the number of rows. A large p is no agreement: with few seeds the "
        "interval is wide, and it says what can be excluded.",
        ("Task", "Model", "", "n", "difference", "standard error", "95 % interval", "p"),
        without_repeats(rows, 2),
        3,
    )


def _is_run(line: Line) -> bool:
    return any(result.group is not None for result in line.results)


def _paper_row(line: Line, texts: Sequence[str]) -> tuple[Cell, ...]:
    """The paper's numbers; where none of a row's runs are there, it stands for both."""
    source = "paper" if _is_run(line) else f"paper (ours {NOT_RUN})"
    return (*_names(line, source), *(Cell(text, "paper") for text in texts))


def _cell(result: Result, best: bool) -> Cell:
    role = "missing" if result.group is None else "best" if best else "ours"
    return Cell(outcome(result.group), role)


def _best(line: Line) -> Result | None:
    """The lowest mean of a row, if there are two to compare; never one of survivors alone."""
    means = {r.group.summary.mean: r for r in line.results if r.group and r.group.summary}
    whole = {m: r for m, r in means.items() if r.group and "diverged" not in r.group.failures}
    return whole[min(whole)] if whole and len(means) > 1 else None


def _names(line: Line, source: str) -> tuple[Cell, ...]:
    return tuple(Cell(text, "name") for text in (line.pair.task, line.pair.model, source))


def _differing(footnotes: Footnotes) -> list[str]:
    lines = footnotes.lines()
    return ["Runs that differ from the shipped gin files:", *lines] if lines else []


def _on(machine: str, group: Group | None) -> list[Record]:
    return [run for run in group.finished if run.machine == machine] if group else []


def _hours(runs: Sequence[Sequence[Record]]) -> list[float | None]:
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
