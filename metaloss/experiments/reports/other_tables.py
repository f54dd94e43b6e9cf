"""The table of all runs, and the comparisons of those that have no place in the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from metaloss.experiments.groups import Group, compared_by_seed
from metaloss.experiments.records import Record, mean_of
from metaloss.experiments.reports.paper import STRUCTURE, Paper
from metaloss.experiments.reports.tables import (
    COMPARISON_HEAD,
    COMPARISONS,
    DASH,
    GIB,
    Cell,
    Footnotes,
    Table,
    comparison_cells,
    number,
    outcome,
    plus_minus,
    without_repeats,
)
from metaloss.experiments.settings import METHOD, Difference, told, variants
from metaloss.experiments.statistics import Comparison, corrected

OF_THE_METHOD = {METHOD, *STRUCTURE}


def results(groups: Sequence[Group], known: Paper) -> Table:
    """All groups by task, base model and method, with the number of each seed."""
    several = any(len(group.runs) > 1 for group in groups)
    seeds = sorted({run.seed for group in groups for run in group.runs}) if several else []
    published = {group: known.number_of(group.settings) for group in groups}
    beside = any(published.values())
    rows, footnotes = [], Footnotes()
    for group in groups:
        by_seed = {run.seed: run for run in group.runs}
        theirs = published[group]
        seconds = mean_of(group.finished, "seconds")
        memory = mean_of(group.finished, "peak_memory_bytes")
        cells = [
            Cell((group.metric or DASH).replace("_", " ")),
            Cell(outcome(group)),
            *(Cell(_of_seed(by_seed.get(seed))) for seed in seeds),
            *[Cell(plus_minus(theirs), "paper") if theirs else Cell(DASH)] * beside,
            Cell(f"{seconds:.3g}" if seconds else DASH),
            Cell(f"{memory / GIB:.2f}" if memory else DASH),
        ]
        rows.append((*names(group, groups, footnotes), *cells))
    caption = "Test error: mean±sample standard deviation (n seeds)"
    caption += ", and that of each seed" * several
    paper = " Paper: its Table 1's number of the same method, whatever the settings here."
    heads = ("metric", "test", *(f"seed {seed}" for seed in seeds), *["paper"] * beside)
    return Table(
        "Runs by task and method",
        f"{caption}; seconds and peak memory of a finished run, with its initialisation."
        + paper * beside,
        ("Task", "Model", "Method", *heads, "seconds", "GiB"),
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def _of_seed(run: Record | None) -> str:
    """A run's test error, or why it has none."""
    if run is None:
        return DASH
    return run.status if run.test is None else number(run.test)


#: Columns of `scores`, and where result.json has them: test_metrics.
SCORES = {
    "loss": "task loss",
    "ece": "calibration error",
    "brier": "Brier",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "top5_error": "top-5 error",
    "r2": "R²",
    "rmse": "rmse",
    "mae": "mae",
}


def scores(groups: Sequence[Group], name: str) -> Table | None:
    """What else was measured on the test data; None where no run says it.

    Args:
        groups: of any tables.
        name: of the table.
    """
    found = {group: scores_of(group) for group in groups}
    shown = [key for key in SCORES if any(key in numbers for numbers in found.values())]
    if not {*shown} - {"loss", "rmse", "mae"}:  # runs of an earlier version have these alone
        return None
    rows, footnotes = [], Footnotes()
    for group, numbers in found.items():
        if numbers:
            texts = (number(numbers[key]) if key in numbers else DASH for key in shown)
            rows.append((*names(group, groups, footnotes), *map(Cell, (outcome(group), *texts))))
    return Table(
        name,
        "Means over the finished runs, on test data: the error, the task loss (of classes the "
        "negative log-likelihood), the expected calibration error in 15 bins, the Brier score from "
        "0 to 2.",
        ("Task", "Model", "Method", "test", *(SCORES[key] for key in shown)),
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def scores_of(group: Group) -> dict[str, float]:
    """The means of what the group's runs all say on test data, by the keys of `SCORES`."""
    of_runs = [run.result.get("test_metrics") or {} for run in group.finished]
    found: dict[str, list[Any]] = {key: [of.get(key) for of in of_runs] for key in SCORES}
    return {
        key: sum(values) / len(values)
        for key, values in found.items()
        if values and all(isinstance(value, float) for value in values)
    }


def tests(groups: Sequence[Group], among: Sequence[Group]) -> Table | None:
    """The groups outside the paper's tables against the baseline; None where there is none.

    Args:
        groups: what is compared.
        among: the groups whose baselines it is compared with.
    """
    rows, footnotes = [], Footnotes()
    for group, comparison in against_baseline(groups, among):
        task, backbone, method = names(group, groups, footnotes)
        compared = Cell(f"{method.text} - baseline", "name")
        rows.append((task, backbone, compared, *comparison_cells(comparison)))
    if not rows:
        return None
    return Table(
        "Runs by task and method, paired by seed",
        COMPARISONS.replace("one row", "one task and model"),
        ("Task", "Model", "compared", *COMPARISON_HEAD),
        without_repeats(rows, 2),
        3,
        footnotes.lines(),
    )


def differing(group: Group, others: Sequence[Group]) -> Difference:
    """The parameters in which a group differs from others of its pair, with its own values.

    Of other methods only those that both have, and not what makes them another method.
    """
    found: set[tuple[str, Any]] = set()
    for other in others:
        difference = group.settings.difference(other.settings)
        if other.pair == group.pair and other.method == group.method:
            found.update(difference)
        elif other.pair == group.pair:
            both = group.settings.values.keys() & other.settings.values.keys() - OF_THE_METHOD
            found.update((name, value) for name, value in difference if name in both)
    return tuple(sorted(found, key=lambda item: item[0]))


def called(groups: Sequence[Group]) -> dict[Group, str]:
    """A name for each group, by what differs between them."""
    return dict(zip(groups, variants([group.settings for group in groups]), strict=True))


def against_baseline(
    groups: Sequence[Group], among: Sequence[Group]
) -> Iterator[tuple[Group, Comparison]]:
    """Each group compared with the baseline of its pair, among others, of the nearest settings."""
    for pair in dict.fromkeys(group.pair for group in groups):
        of_pair = [group for group in groups if group.pair == pair]
        baselines = [group for group in among if group.pair == pair and group.method == "baseline"]
        made = {}
        for group in of_pair:
            if group in baselines or not baselines:
                continue
            nearest = min(baselines, key=lambda b: len(group.settings.difference(b.settings)))
            comparison = compared_by_seed(group, nearest)
            if comparison is not None:
                made[group] = comparison
        yield from zip(made, corrected(list(made.values())), strict=True)


def names(group: Group, groups: Sequence[Group], footnotes: Footnotes) -> tuple[Cell, Cell, Cell]:
    """A group's task, model and method, with a letter for what it differs in from the others."""
    mark = footnotes.mark(told(differing(group, groups)))
    task, backbone = group.pair
    name = called(groups)[group]
    return Cell(task, "name"), Cell(backbone, "name"), Cell(name + mark, "name")
