"""Figures of a run. Every function takes data and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def learning_curve(rows: Sequence[dict[str, Any]], metric: str, title: str = "") -> Figure:
    """The metric on training and validation data over the steps, on a log scale.

    Args:
        rows: of metrics.jsonl; those with a "split" are drawn, where their metric is a number.
        metric: their key, "error_rate" or "mse".
    """
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axis = figure.subplots()
    drawn = [row for row in rows if row.get("split") and row[metric] is not None]
    for split, style in (("train", "-"), ("valid", "--")):
        points = [(row["step"], row[metric]) for row in drawn if row["split"] == split]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, style, label=split)
    if any(row[metric] > 0 for row in drawn):
        axis.set_yscale("log")
    axis.set_xlabel("base step")
    axis.set_ylabel(metric.replace("_", " "))
    axis.grid(alpha=0.25, which="both")
    if axis.lines:
        axis.legend()
    if title:
        axis.set_title(title)
    return figure
