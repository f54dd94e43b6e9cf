"""Figures of numbers: of indices and metrics over the training, and of calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from metaloss.analysis import indices

Row = Mapping[str, Any]

#: The panels: the index that is drawn, another one beside it, and the section that explains it.
PANELS = (
    ("scale", None, "implicit learning rate, 5.5"),
    ("effective_base_lr", "base_lr", "implicit learning rate, 5.5"),
    ("flatness", "flat_range", "implicit early stopping, 5.6"),
    ("argmin", None, "implicit label smoothing, 5.7"),
    ("wrong_slope", None, "a warning where it is large"),
    ("phi_distance", None, r"$\|\phi_t - \phi_0\|$"),
    ("cosine_theta", None, "which way a step goes"),
    ("ratio_theta", None, "how far a step goes"),
)

STYLES = ("-", "--", "-.", ":")


def index_panels(rows: Sequence[Row], title: str = "") -> Figure:
    """The indices over the base steps, with the paper's reading of each.

    Args:
        rows: of metrics.jsonl; those of the training are drawn.
        title: of the figure.
    """
    rows = [row for row in rows if row["phase"] == "train"]
    figure = Figure(figsize=(13.6, 5.2), layout="constrained")
    for axis, (name, beside, reading) in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        _line(axis, rows, name, color="C0", label=indices.MEANINGS[name])
        if beside is not None and any(beside in row for row in rows):
            _line(axis, rows, beside, color="C1", ls="--", label=indices.MEANINGS[beside])
            axis.legend(fontsize=7.5, frameon=False)
        axis.set_title(f"{indices.MEANINGS[name]}\n({reading})", fontsize=8)
        if name in ("flatness", "wrong_slope"):
            axis.set_ylim(-0.03, 1.03)
        _dress(axis)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def learning_rates(runs: Mapping[str, Sequence[Row]], title: str = "") -> Figure:
    """The effective base learning rate of runs: of learned losses beside MetaLR's (appendix C.1).

    Args:
        runs: rows of metrics.jsonl by the run's name; those with an "effective_base_lr" are drawn.
        title: of the figure.
    """
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axis = figure.subplots()
    drawn = {
        name: [row for row in rows if row.get("effective_base_lr") is not None]
        for name, rows in runs.items()
    }
    for (name, rows), style in zip(drawn.items(), STYLES * len(drawn), strict=False):
        _line(axis, rows, "effective_base_lr", ls=style, label=name)
    values = [row["effective_base_lr"] for rows in drawn.values() for row in rows]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axis.set_yscale("log")
    axis.set_ylabel("effective base learning rate")
    axis.legend(fontsize=8, frameon=False)
    _dress(axis)
    if title:
        axis.set_title(title, fontsize=10)
    return figure


def _line(axis: Axes, rows: Sequence[Row], name: str, **style: Any) -> None:
    """A number over the steps of the rows that have it; a gap where it is null."""
    rows = [row for row in rows if name in row]
    values = [float("nan") if row.get(name) is None else row[name] for row in rows]
    marker = "o" if len(rows) == 1 else None
    axis.plot([row["step"] for row in rows], values, lw=1.6, marker=marker, **style)


def _dress(axis: Axes) -> None:
    axis.set_xlabel("base step")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


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


def reliability(bins: Sequence[Row], title: str = "") -> Figure:
    """How often a model is right, by how sure it is; on the diagonal it is as often as it says.

    Args:
        bins: of result.json, each with its "confidence", "accuracy" and "count".
        title: of the figure.
    """
    figure = Figure(figsize=(4.2, 4.6), layout="constrained")
    axis, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidence = [row["confidence"] for row in bins]
    axis.plot([0, 1], [0, 1], color="0.6", ls="--", lw=1)
    axis.plot(confidence, [row["accuracy"] for row in bins], "o-", lw=1.6)
    axis.set_ylabel("accuracy")
    axis.set_ylim(-0.03, 1.03)
    counts.bar(confidence, [row["count"] for row in bins], width=0.03)
    counts.set_ylabel("examples")
    counts.set_xlabel("confidence, by bins")
    for one in (axis, counts):
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    if title:
        axis.set_title(title, fontsize=10)
    return figure
