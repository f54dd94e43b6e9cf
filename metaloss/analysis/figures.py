"""Figures of a run. Every function takes data and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from metaloss.analysis.curves import LossCurves


def loss_curves(curves: LossCurves, title: str = "") -> Figure:
    """The learned loss over the prediction, one panel a target, coloured by the training step.

    As the paper's Figures 1, 4 and 9-18. The scale is the loss's own, since it is learned too
    (section 5.5); what is taken off each curve is a constant, which does not act on θ: its value at
    the prediction 0.5, or at the target in regression.
    """
    panels = len(curves.targets)
    figure = Figure(figsize=(4.2 * panels + 0.8, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for k, axis in enumerate(axes):
        lines = [np.column_stack([curves.grid, values]) for values in _aligned(curves, k)]
        collection = LineCollection(lines, array=curves.steps, cmap="viridis", linewidths=1.1)
        axis.add_collection(collection)
        axis.set_xlim(float(curves.grid[0]), float(curves.grid[-1]))
        axis.set_ylim(*_limits(np.stack([line[:, 1] for line in lines])))
        axis.grid(alpha=0.25)
        target = f"y = {curves.targets[k]:g}"
        axis.set_title(target)
        if curves.classification:
            axis.set_xlabel("predicted probability f(x)")
        else:
            axis.set_xlabel("prediction f(x)")
            axis.axvline(curves.targets[k], color="0.6", linewidth=0.8, linestyle=":")
        axis.set_ylabel(f"learned loss at {target}")
    figure.colorbar(collection, ax=list(axes), label="base step")
    if title:
        figure.suptitle(title)
    return figure


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


def _aligned(curves: LossCurves, k: int) -> np.ndarray:
    """The curves of one target, each less its value at the reference prediction; [T, G]."""
    reference = 0.5 if curves.classification else curves.targets[k]
    values = curves.values[:, k]
    return values - values[:, [int(np.abs(curves.grid - reference).argmin())]]


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Limits that show nearly all of the curves: single extremes are cut off."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.quantile(finite, [0.002, 0.998])
    margin = 0.05 * (high - low) or 1.0
    return float(low - margin), float(high + margin)
