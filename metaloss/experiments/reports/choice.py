"""Choosing: of all configurations that were tried for a method, the one to report, and its price.

The choice is made on the split "select", which neither the model nor the loss is trained on. The
test error is shown of the chosen configuration alone: whoever reads that of all of them chooses by
it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from metaloss.errors import InputError
from metaloss.experiments.groups import Group
from metaloss.experiments.reports.document import Document, Section
from metaloss.experiments.reports.other_tables import differing
from metaloss.experiments.reports.tables import (
    DASH,
    Cell,
    Table,
    outcome,
    plus_minus,
    without_repeats,
)
from metaloss.experiments.settings import describe
from metaloss.experiments.statistics import summarize

#: Task, base model and method.
Choice = tuple[str, str, str]


def document(groups: Sequence[Group]) -> Document:
    """The chosen configuration of each task, model and method.

    Raises:
        InputError: no run has numbers on the split "select".
    """
    by_method: dict[Choice, list[Group]] = defaultdict(list)
    for group in groups:
        if any(run.result.get("select") is not None for run in group.finished):
            key = (*group.pair, group.method)
            by_method[key].append(group)
    if not by_method:
        raise InputError(
            "no finished run has a split to choose by: give Runner.select_fraction, as "
            "ablations/select.gin does"
        )
    rows = [_row(method, tried) for method, tried in by_method.items()]
    table = Table(
        "What was chosen, and what it cost",
        'Chosen by the least mean error on the split "select", over seeds; a configuration of '
        "which a run diverged, or has no number, comes last. Both errors are means±sample standard "
        "deviations (n seeds). The error on select is that of the best of all that were tried, and "
        "so is too low; the test error is not. Hours are those of all runs together.",
        ("Task", "Model", "Method", "tried", "runs", "hours", "chosen", "select", "test"),
        without_repeats(rows, 2),
        3,
    )
    return Document("Choices", [Section("By method", [table])])


def best(tried: Sequence[Group]) -> Group:
    """The configuration with the least mean error on "select"; the first of equal ones."""
    return min(tried, key=_standing)


def _standing(group: Group) -> tuple[bool, float]:
    values = _selections(group)
    return len(values) < len(group.runs), sum(values) / len(values) if values else math.inf


def _selections(group: Group) -> list[float]:
    """The error on "select" of the finished runs that have one, by seed."""
    found = (run.result.get("select") for run in group.finished)
    return [float(value) for value in found if value is not None]


def _row(method: Choice, tried: Sequence[Group]) -> tuple[Cell, ...]:
    chosen = best(tried)
    runs = [run for group in tried for run in group.runs]
    hours = sum(run.result.get("seconds") or 0.0 for run in runs) / 3600
    selections = summarize(_selections(chosen))
    texts = (
        str(len(tried)),
        str(len(runs)),
        f"{hours:.2g}",
        describe(differing(chosen, tried)) or DASH,
        f"{plus_minus(selections)} ({selections.n})",
        outcome(chosen),
    )
    return (*(Cell(name, "name") for name in method), *map(Cell, texts))
