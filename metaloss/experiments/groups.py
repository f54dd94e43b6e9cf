"""Groups: the runs of one configuration, one a seed. Only these are averaged."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from metaloss.experiments.records import STATUSES, Record
from metaloss.experiments.settings import WATCHING, Settings
from metaloss.experiments.statistics import (
    DIVERGED,
    Comparison,
    Summary,
    compare,
    over_examples,
    summarize,
)

#: The paper's methods, as the columns of its Table 1; each to the letter before what we make of it.
METHODS = (
    "baseline",
    "ml3_letter",
    "ml3",
    "meta_lr_letter",
    "meta_lr",
    "adalfl_letter",
    "adalfl",
)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        settings: those of all of them.
        runs: one a seed, by seed.
    """

    settings: Settings
    runs: tuple[Record, ...]

    @property
    def pair(self) -> tuple[str, str]:
        """Task and backbone."""
        return self.runs[0].task, self.runs[0].backbone

    @property
    def method(self) -> str:
        """The runs' word for themselves."""
        return self.settings.method

    @property
    def finished(self) -> list[Record]:
        """The runs with a result."""
        return [run for run in self.runs if run.status == "finished"]

    @cached_property
    def tests(self) -> dict[int, float]:
        """The metric on the test split of the finished runs, by seed."""
        return {run.seed: run.test for run in self.finished if run.test is not None}

    @cached_property
    def ranked(self) -> dict[int, float]:
        """`tests`, and the runs that diverged as worse than all others."""
        return self.tests | {run.seed: DIVERGED for run in self.runs if run.status == "diverged"}

    @property
    def summary(self) -> Summary | None:
        """Mean and deviation of `tests`; None if there is none."""
        return summarize(list(self.tests.values())) if self.tests else None

    @property
    def failures(self) -> dict[str, int]:
        """How many runs have no result, by status, in the order of `STATUSES`."""
        counts = Counter(run.status for run in self.runs)
        return {status: counts[status] for status in STATUSES[1:] if counts[status]}

    @property
    def fallen_back(self) -> int:
        """How many finished runs made base steps on the task loss, in place of an unhealthy one."""
        return sum(bool(run.result.get("steps_by_task_loss")) for run in self.finished)

    @property
    def metric(self) -> str | None:
        """The word for what is measured, "mse" or "error_rate"; None before any evaluation."""
        return next((run.metric for run in self.runs if run.metric is not None), None)


def group(runs: Sequence[Record]) -> tuple[list[Group], list[str]]:
    """Sorts runs by configuration.

    Returns:
        The groups, by task, backbone and method; and a line for each run that is left out, since
        its seed is there twice.
    """
    by_key: dict[object, list[Record]] = defaultdict(list)
    for run in runs:
        by_key[run.settings.key].append(run)
    groups, lines = [], []
    for members in by_key.values():
        by_seed: dict[int, list[Record]] = defaultdict(list)
        for run in members:
            by_seed[run.seed].append(run)
        kept = []
        for _, same in sorted(by_seed.items()):
            *others, best = sorted(same, key=_standing)
            kept.append(best)
            lines += [
                f"{run.path}: configuration and seed of {best.path} again; left out"
                for run in others
            ]
        groups.append(Group(kept[0].settings, tuple(kept)))
    return sorted(groups, key=_order), lines


def compared_by_seed(first: Group, second: Group) -> Comparison | None:
    """The test errors of two groups, seed by seed; None if they share none.

    Where the runs kept their errors on the same test examples, the chance of these is told too.
    """
    found = compare(first.ranked, second.ranked)
    if found is None or found.diverged:
        return found
    seeds = first.tests.keys() & second.tests.keys()
    kept = [
        {run.seed: run.errors for run in g.finished if run.seed in seeds} for g in (first, second)
    ]
    pairs = [(kept[0].get(seed), kept[1].get(seed)) for seed in sorted(seeds)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len({errors.examples for pair in known for errors in pair}) != 1 or len(known) < len(pairs):
        return found
    ours, theirs = (np.stack([pair[i].errors for pair in known]) for i in (0, 1))
    return replace(found, examples=over_examples(ours, theirs)[1])


def _order(group: Group) -> tuple[Any, ...]:
    """By task and backbone; the paper's methods in its order, others after them; then by values."""
    known = METHODS.index(group.method) if group.method in METHODS else len(METHODS)
    values = (item for item in group.settings.values.items() if item[0] not in WATCHING)
    return *group.pair, known, group.method, sorted(map(rank, values))


def rank(item: tuple[str, Any]) -> tuple[Any, ...]:
    """Sorts a parameter's values: numbers, and tuples of them, by size; all others after them."""
    name, value = item
    parts = value if isinstance(value, tuple) else (value,)
    sizes = [float(part) if isinstance(part, (int, float)) else math.inf for part in parts]
    return name, sizes, repr(value)


def _standing(run: Record) -> tuple[bool, bool, str]:
    """Of the runs of one configuration and seed the last holds: ended before not, then newest."""
    ended = run.status in ("finished", "diverged")
    return ended, run.status != "damaged", str(run.meta.get("started", ""))
