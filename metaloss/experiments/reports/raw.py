"""Raw numbers: the report as one CSV file, a row for each cell that has runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from metaloss.experiments.groups import Group
from metaloss.experiments.records import STATUSES, mean_of
from metaloss.experiments.reports.other_tables import against_baseline, differing
from metaloss.experiments.reports.placement import Filled, Result
from metaloss.experiments.settings import describe
from metaloss.experiments.statistics import Comparison

COLUMNS = (
    "table", "task", "backbone", "method", "column", "differs", "metric", "n", "mean", "std",
    *STATUSES[1:], "seeds", "tests", "seconds", "peak_memory_bytes", "paper_mean", "paper_std",
    "compared_with", "pairs", "unpaired", "pairs_diverged", "difference", "low",
    "high", "examples_se", "wilcoxon_p_holm", "caution",
)  # fmt: skip


def as_csv(filled: Sequence[Filled], rest: Sequence[Group], groups: Sequence[Group]) -> str:
    """The cells of the paper's tables that have runs, then the other groups.

    `difference` is that of `compared_with` less the row's own runs in the paper's tables, and of
    the row's runs less the baseline's elsewhere, of all groups that there are.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_in_tables(filled))
    writer.writerows(_elsewhere(rest, groups))
    return out.getvalue()


def _in_tables(filled: Sequence[Filled]) -> Iterator[dict[str, Any]]:
    for one in filled:
        focus = one.table.columns[one.table.focus].title
        for line in one.lines:
            for result in line.results:
                if result.group is not None:
                    yield {
                        "table": one.table.number,
                        "column": result.column.title,
                        "differs": describe(line.difference),
                        **_of_group(result.group),
                        **_of_paper(result),
                        **_of_comparison(result.comparison, focus),
                    }


def _elsewhere(groups: Sequence[Group], among: Sequence[Group]) -> Iterator[dict[str, Any]]:
    comparisons = dict(against_baseline(groups, among))
    for group in groups:
        yield {
            "differs": describe(differing(group, groups)),
            **_of_group(group),
            **_of_comparison(comparisons.get(group), "baseline"),
        }


def _of_group(group: Group) -> dict[str, Any]:
    summary = group.summary
    return {
        "task": group.pair[0],
        "backbone": group.pair[1],
        "method": group.method,
        "metric": group.metric,
        "n": summary.n if summary else 0,
        "mean": summary.mean if summary else None,
        "std": summary.deviation if summary else None,
        **{status: group.failures.get(status, 0) for status in STATUSES[1:]},
        "seeds": " ".join(map(str, group.tests)),
        "tests": " ".join(map(str, group.tests.values())),
        "seconds": mean_of(group.finished, "seconds"),
        "peak_memory_bytes": mean_of(group.finished, "peak_memory_bytes"),
    }


def _of_paper(result: Result) -> dict[str, Any]:
    if result.paper is None:
        return {}
    return {"paper_mean": result.paper.mean, "paper_std": result.paper.deviation}


def _of_comparison(comparison: Comparison | None, other: str) -> dict[str, Any]:
    if comparison is None:
        return {}
    low, high = comparison.interval or (None, None)
    return {
        "compared_with": other,
        "pairs": comparison.n,
        "unpaired": comparison.unpaired,
        "pairs_diverged": comparison.diverged,
        "difference": comparison.difference,
        "low": low,
        "high": high,
        "examples_se": comparison.examples,
        "wilcoxon_p_holm": comparison.wilcoxon,
        "caution": comparison.caution,
    }
