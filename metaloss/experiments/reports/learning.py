"""Learning curves of many runs: mean and deviation over seeds, one panel a task and base model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metaloss.experiments.groups import Group

Points = tuple[np.ndarray, np.ndarray]  # base steps and values, [T] each

#: Colours that the colour-blind tell apart (Okabe & Ito); the paper's methods keep theirs.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00", "#000000")
COLOURS = {"Baseline": "0.35", "ML³": "#E69F00", "MetaLR": "#009E73", "AdaLFL": "#0072B2"}
COLOURS |= {"baseline": "0.35", "ml3": "#E69F00", "meta_lr": "#009E73", "adalfl": "#0072B2"}
SPLITS = {"train": "training", "valid": "validation", "select": "selection"}
METRICS = {"mse": "MSE", "error_rate": "error rate"}
COLUMNS = 3


@dataclass(frozen=True)
class MeanCurve:
    """The mean over seeds at the steps that all of them have.

    Attributes:
        label: of the line.
        steps: base steps, [T].
        mean: [T].
        low: mean less the sample standard deviation, not below the lowest seed, so that a log
            scale can show it; [T].
        high: mean plus the deviation, [T].
        note: what the legend adds to the label: the number of seeds.
        diverged: the points of each run that diverged: it is in no mean.
    """

    label: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    note: str = ""
    diverged: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Curves to compare, of one task and base model."""

    title: str
    ylabel: str
    curves: tuple[MeanCurve, ...]


def mean_curve(group: Group, split: str, label: str) -> MeanCurve | None:
    """The curve of a group's finished runs; None if no run has a point.

    Args:
        group: runs of one configuration.
        split: "train", "valid", ...
        label: of the line.
    """
    found = [curve for run in group.finished if (curve := run.curve(split))]
    common = sorted(set.intersection(*map(set, found))) if found else []
    values = np.array([[curve[step] for step in common] for curve in found])  # [n, T]
    lost = tuple(
        (np.array(list(curve)), np.array(list(curve.values())))
        for run in group.runs
        if run.status == "diverged" and (curve := run.curve(split))
    )
    if not common and not lost:
        return None
    if not common:
        nothing = np.empty(0)
        return MeanCurve(label, nothing, nothing, nothing, nothing, "diverged", lost)
    mean = values.mean(0)
    deviation = values.std(0, ddof=1) if len(found) > 1 else np.zeros_like(mean)
    low = np.maximum(mean - deviation, values.min(0))
    note = f"n = {len(found)}"
    return MeanCurve(label, np.array(common), mean, low, mean + deviation, note, lost)


def panel(title: str, labelled: Mapping[str, Group | None], split: str) -> Panel | None:
    """A panel of the groups that have curves; None if none has."""
    curves = {
        label: curve
        for label, group in labelled.items()
        if group is not None and (curve := mean_curve(group, split, label)) is not None
    }
    metrics = [group.metric for label, group in labelled.items() if group and label in curves]
    if not curves or metrics[0] is None:
        return None
    return Panel(title, error_label(split, metrics[0]), tuple(curves.values()))


def error_label(split: str, metric: str) -> str:
    """What stands at an axis: "validation error rate"."""
    return f"{SPLITS.get(split, split)} {METRICS.get(metric, metric)}"


def learning_curves(panels: Sequence[Panel], colours: Mapping[str, str] = COLOURS) -> Figure:
    """Error against base steps on a log scale: mean over seeds, and a band of one deviation.

    As the paper's Figures 3, 7 and 8. Runs that diverged are thin dashed lines up to a cross.

    Args:
        panels: one of them an axes; at least one.
        colours: by the curves' labels; others are given in turn.
    """
    labels = dict.fromkeys(curve.label for panel in panels for curve in panel.curves)
    free = [colour for colour in PALETTE if colour not in {colours.get(name) for name in labels}]
    rest = (free or PALETTE) * len(labels)
    chosen = dict(zip((name for name in labels if name not in colours), rest, strict=False))
    chosen |= {name: colours[name] for name in labels if name in colours}
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (4.0 * columns + 0.4, 3.2 * rows) if columns > 1 else (5.4, 3.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, one in zip(axes, panels, strict=False):
        _draw(axis, one, chosen)
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _draw(axis: Axes, one: Panel, colours: Mapping[str, str]) -> None:
    for curve in one.curves:
        colour = colours[curve.label]
        label = curve.label + (f" ({curve.note})" if curve.note else "")
        # A logarithm shows no zero: it is drawn at the bottom.
        axis.plot(curve.steps, curve.mean, color=colour, linewidth=1.4, label=label)
        if (curve.high > curve.low).any():
            axis.fill_between(
                curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0
            )
        for steps, values in curve.diverged:
            axis.plot(steps, values, color=colour, linewidth=0.8, linestyle="--")
            axis.plot(steps[-1:], values[-1:], color=colour, marker="x", linestyle="none")
    drawn = [line.get_ydata() for line in axis.lines]
    positive = np.concatenate([np.asarray(values, float) for values in drawn])
    if (positive > 0).any():
        axis.set_yscale("log", nonpositive="clip")
        _tick_within_a_decade(axis, positive[positive > 0])
    axis.set_title(_wrapped(one.title), fontsize=9)
    axis.set_xlabel("base step")
    axis.set_ylabel(one.ylabel)
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.legend(fontsize=7, framealpha=0.75, edgecolor="none")


def _tick_within_a_decade(axis: Axes, values: np.ndarray) -> None:
    """Plain numbers on the ticks between two powers of ten, where those alone would be too few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(plain)
    close = values.max() / values.min() < 20
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if close else tuple(range(2, 10))))
    axis.yaxis.set_minor_formatter(plain if close else NullFormatter())
    axis.tick_params(labelsize=8, which="both")


def _wrapped(title: str) -> str:
    return "\n".join(line for part in title.split("\n") for line in textwrap.wrap(part, 52))
