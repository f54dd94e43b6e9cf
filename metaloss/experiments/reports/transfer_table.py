"""The table of a transfer: what a model trained with a learned loss reaches beside the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaloss.experiments.reports.document import Document, Section
from metaloss.experiments.reports.tables import (
    COMPARISON_HEAD,
    COMPARISONS,
    DASH,
    Cell,
    Table,
    comparison_cells,
    number,
    plus_minus,
)
from metaloss.experiments.statistics import DIVERGED, compare, summarize

#: By method and seed, the content of result.json; the first method is the baseline.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def document(results: Results, losses: Mapping[str, str]) -> Document:
    """The results as a document of one table.

    Args:
        results: of all runs, for the same seeds.
        losses: what each method trained with, a line each.
    """
    baseline, first = _first(results)
    seeds = list(results[baseline])
    rows = []
    for method, runs in results.items():
        found = tests(runs)
        mean = plus_minus(summarize(list(found.values()))) if found else DASH
        each = [number(found[s]) if s in found else str(runs[s]["status"]) for s in seeds]
        compared = (
            compare(_ranked(runs), _ranked(results[baseline])) if method != baseline else None
        )
        beside = (
            [Cell("")] * len(COMPARISON_HEAD) if compared is None else comparison_cells(compared)
        )
        seconds = sum(run["seconds"] for run in runs.values()) / len(runs)
        cells = map(Cell, (mean, *each, f"{seconds:.0f}"))
        rows.append((Cell(method, "name"), *cells, *beside))
    heads = ("method", "mean", *(f"seed {seed}" for seed in seeds), "seconds", *COMPARISON_HEAD)
    table = Table(
        f"Test {first['metric']}",
        f"{first['steps']:,} base steps. {COMPARISONS}",
        heads,
        rows,
        names=1,
        notes=[f"{method}: {text}" for method, text in losses.items()],
    )
    title = f"Learned losses on {first['task']} + {first['backbone']}"
    return Document(title, [Section("Beside the baseline", [table])])


def summary(results: Results, losses: Mapping[str, str]) -> dict[str, Any]:
    """The results as plain data."""
    baseline, first = _first(results)
    methods = {}
    for method, runs in results.items():
        found = tests(runs)
        whole = summarize(list(found.values())) if found else None
        compared = (
            compare(_ranked(runs), _ranked(results[baseline])) if method != baseline else None
        )
        methods[method] = {
            "loss": losses.get(method),
            "test": {str(seed): run["test"] for seed, run in runs.items()},
            "status": {str(seed): run["status"] for seed, run in runs.items()},
            "n": len(found),
            "mean": None if whole is None else whole.mean,
            "deviation": None if whole is None else whole.deviation,
            "minus_baseline": None if compared is None else compared.difference,
            "seconds": sum(run["seconds"] for run in runs.values()) / len(runs),
        }
    return {key: first[key] for key in ("task", "backbone", "metric", "steps")} | {
        "methods": methods
    }


def tests(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """The metric on the test split by seed, of the runs that have one."""
    return {seed: run["test"] for seed, run in runs.items() if run["test"] is not None}


def _ranked(runs: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """`tests`, and the runs that diverged as worse than all others."""
    diverged = (seed for seed, run in runs.items() if run["status"] == "diverged")
    return tests(runs) | dict.fromkeys(diverged, DIVERGED)


def _first(results: Results) -> tuple[str, Mapping[str, Any]]:
    """The baseline, and one of its runs."""
    baseline = next(iter(results))
    return baseline, next(iter(results[baseline].values()))
