"""Choosing: of all configurations that were tried for a method, the one to report, and its price.

The choice is made on the split "select", which neither the model nor the loss is trained on. The
test error is shown of the chosen configuration alone: whoever reads that of all of them chooses by
it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaloss.errors import InputError
from metaloss.experiments.groups import Group, rank
from metaloss.experiments.reports.document import Document, Section
from metaloss.experiments.reports.other_tables import SCORES, differing, scores_of
from metaloss.experiments.reports.tables import (
    DASH,
    Cell,
    Table,
    number,
    outcome,
    plus_minus,
    without_repeats,
)
from metaloss.experiments.settings import Difference, brief, component_of, describe
from metaloss.experiments.statistics import summarize


@dataclass(frozen=True)
class Method:
    """What a configuration is chosen for.

    Attributes:
        task, model, name: as the runs call them.
        data: the task's own parameters, as the outer split: they are not chosen.
    """

    task: str
    model: str
    name: str
    data: Difference


#: The configurations that were tried, by what they were tried for.
Tried = Mapping[Method, Sequence[Group]]


def document(groups: Sequence[Group]) -> Document:
    """The chosen configuration of each task, model and method.

    Raises:
        InputError: no run has numbers on the split "select".
    """
    found = by_method(groups)
    if not any(_selections(group) for tried in found.values() for group in tried):
        raise InputError(
            "no finished run has a split to choose by: give Runner.select_fraction, as "
            "ablations/select.gin does"
        )
    return Document("Choices", [Section("By method", [table(found)])])


def by_method(groups: Sequence[Group]) -> Tried:
    """What was tried for each method: all with the split "select", or the only one that there is.

    By task and model, and by the task's own parameters.
    """
    found: dict[Method, list[Group]] = defaultdict(list)
    for group in groups:
        values = group.settings.values.items()
        of_task = sorted(i for i in values if component_of(i[0]).startswith("tasks."))
        found[Method(*group.pair, group.method, tuple(of_task))].append(group)
    split = {
        method: [g for g in tried if g.settings.values.get("Runner.select_fraction") is not None]
        for method, tried in found.items()
    }
    kept = {m: split[m] or tried for m, tried in found.items() if split[m] or len(tried) == 1}
    return dict(sorted(kept.items(), key=lambda item: _place(item[0])))


def table(found: Tried) -> Table:
    """The configuration that is chosen of those that were tried for each method."""
    chosen = {method: best(tried) for method, tried in found.items()}
    of_classes = any(group.metric == "error_rate" for group in chosen.values())
    scores = {method: scores_of(group) for method, group in chosen.items()}
    shown = [k for k in ("loss", "ece") * of_classes if any(k in said for said in scores.values())]
    rows = []
    for method, tried in found.items():
        texts = (number(scores[method][k]) if k in scores[method] else DASH for k in shown)
        rows.append((*_row(method, tried, chosen[method], found), *map(Cell, texts)))
    rows += [(*row, *[Cell(DASH)] * len(shown)) for row in _over_data(found, chosen)]
    heads = ("tried", "runs", "hours", "chosen", "select", "test", *(SCORES[k] for k in shown))
    return Table(
        "What was chosen, and what it cost",
        'Chosen by the least mean error on the split "select", over seeds; a configuration of '
        "which a run diverged, or has no number, comes last. Both errors are means±sample standard "
        "deviations (n seeds). The error on select is that of the best of all that were tried, and "
        "so is too low; the test error is not. Hours are those of all runs together.",
        ("Task", "Model", "Method", *heads),
        without_repeats(rows, 2),
        3,
    )


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


def _place(method: Method) -> tuple[Any, ...]:
    """Sorts by task, model and data; the methods of these stay in their order."""
    return method.task, method.model, [rank(item) for item in method.data]


def _row(method: Method, tried: Sequence[Group], chosen: Group, found: Tried) -> tuple[Cell, ...]:
    beside = [other for other in found if (other.task, other.model) == (method.task, method.model)]
    data = brief(tuple(i for i in method.data if any(i not in other.data for other in beside)))
    names = f"{method.task}{', ' * bool(data)}{data}", method.model, method.name
    selections = summarize(values) if (values := _selections(chosen)) else None
    texts = (
        *_price([tried]),
        describe(differing(chosen, tried)) or DASH,
        f"{plus_minus(selections)} ({selections.n})" if selections else DASH,
        outcome(chosen),
    )
    return (*(Cell(name, "name") for name in names), *map(Cell, texts))


def _over_data(tried: Tried, chosen: Mapping[Method, Group]) -> Iterator[tuple[Cell, ...]]:
    """Of a method on several splits of a task a row with the means of what was chosen on each."""
    by_name: dict[tuple[str, str, str], list[Method]] = defaultdict(list)
    for method in tried:
        by_name[method.task, method.model, method.name].append(method)
    for (task, model, name), methods in by_name.items():
        if len(methods) == 1:
            continue
        groups = [chosen[method] for method in methods]
        selected = [sum(found) / len(found) for found in map(_selections, groups) if found]
        tested = [group.summary.mean for group in groups if group.summary is not None]
        texts = (
            *_price([tried[method] for method in methods]),
            "of each its own",
            *(
                f"{plus_minus(summarize(means))} ({len(means)} of them)" if means else DASH
                for means in (selected, tested)
            ),
        )
        names = f"{task}, mean of {len(methods)}", model, name
        yield (*(Cell(text, "name") for text in names), *map(Cell, texts))


def _price(tried: Sequence[Sequence[Group]]) -> tuple[str, str, str]:
    """How many configurations, runs and hours."""
    groups = [group for each in tried for group in each]
    runs = [run for group in groups for run in group.runs]
    hours = sum(run.result.get("seconds") or 0.0 for run in runs) / 3600
    return str(len(groups)), str(len(runs)), f"{hours:.2g}"
