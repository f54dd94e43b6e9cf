"""Figures of a learned loss over its training, from its curves alone; each returns a Figure.

The values are the loss's own, since its scale is learned too (paper, section 5.5), less a constant
per curve, which acts on no θ (`LossCurves.reference`). Limits leave out single extremes. The
colours are perceptually uniform and get lighter with the steps, in print without colour too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from metaloss.analysis import known
from metaloss.analysis.curves import LossCurves

#: viridis without its last yellow, which is hard to see on white.
COLOURS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.93, 256)), "steps")
INK = "0.1"  #: nearly black


def loss_curves(rows: Sequence[LossCurves], names: Sequence[str] = (), title: str = "") -> Figure:
    """Curves coloured by the training step: a row a learned loss, a column a panel.

    As the paper's Figures 4 and 9-18; a column shares its limits, and in regression all do.

    Args:
        rows: losses with the same panels.
        names: of the rows.
        title: of the figure.
    """
    columns = len(rows[0].panels)
    figure = Figure(figsize=(3.4 * columns + 0.9, 2.75 * len(rows) + 0.55), layout="constrained")
    share: Literal["col", "all"] = "col" if rows[0].classes is not None else "all"
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=share)
    norm = Normalize(0, max(1, *(int(curves.steps[-1]) for curves in rows)))
    for k in range(columns):
        for row, curves in enumerate(rows):
            axis = axes[row, k]
            lines = [np.column_stack([curves.grid, values]) for values in aligned(curves, k)]
            axis.add_collection(
                LineCollection(lines, array=curves.steps, cmap=COLOURS, norm=norm, linewidths=1.0)
            )
            dress(axis, curves, k, labels=row == len(rows) - 1)
            if row == 0:
                axis.set_title(curves.panels[k], fontsize=10)
        shown = [k] if share == "col" else range(columns)
        axes[0, k].set_ylim(*limits([aligned(curves, i) for curves in rows for i in shown]))
    for row in range(len(rows)):
        axes[row, 0].set_ylabel(names[row] if row < len(names) else "learned loss")
    mappable = matplotlib.cm.ScalarMappable(norm, COLOURS)
    figure.colorbar(mappable, ax=axes, label="base step", format=EngFormatter(sep=""), pad=0.01)
    _head(figure, title)
    return figure


def heat_map(curves: LossCurves, title: str = "") -> Figure:
    """The loss as a colour over base step and prediction, with contours: to read values off."""
    columns = len(curves.panels)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.3), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for k, axis in enumerate(axes):
        values = aligned(curves, k).T  # [G, T]
        low, high = limits([values], margin=0)
        mesh = axis.pcolormesh(
            curves.steps, curves.grid, values, vmin=low, vmax=high, cmap="viridis",
            shading="nearest", rasterized=True,
        )  # fmt: skip
        # 0 is left out: where each curve has its zero is our choice.
        inside = [v for v in MaxNLocator(9).tick_values(low, high) if low < v < high and v != 0]
        if inside:
            light = ["w" if v < (low + high) / 2 else INK for v in inside]
            lines = axis.contour(
                curves.steps, curves.grid, values, inside, colors=light, linewidths=0.7,
                linestyles="solid",
            )  # fmt: skip
            axis.clabel(lines, fontsize=7, fmt="%g")
        axis.set_title(curves.panels[k], fontsize=10)
        axis.set_xlim(curves.steps[0], curves.steps[-1])
        axis.set_xlabel("base step")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.colorbar(mesh, ax=axis, pad=0.01, extend="both")
    axes[0].set_ylabel(_grid_label(curves))
    _head(figure, title)
    return figure


def ribbon(curves: LossCurves, title: str = "") -> Figure:
    """The loss as a surface over prediction and base step, coloured by the step (Figure 1)."""
    columns = len(curves.panels)
    figure = Figure(figsize=(3.9 * columns, 3.5))
    norm = Normalize(0, max(1, int(curves.steps[-1])))
    for k in range(columns):
        axis = figure.add_subplot(1, columns, k + 1, projection="3d")
        values = aligned(curves, k)
        low, high = limits([values])
        prediction, step = np.meshgrid(curves.grid, curves.steps)
        axis.plot_surface(
            prediction, step, np.clip(values, low, high), facecolors=COLOURS(norm(step)),
            rcount=60, ccount=60, linewidth=0, antialiased=False, shade=False,
        )  # fmt: skip
        for t in np.unique(np.linspace(0, len(curves.steps) - 1, 6).astype(int)):
            line = np.clip(values[t], low, high)
            axis.plot(curves.grid, np.full_like(line, curves.steps[t]), line, color=INK, lw=0.8)
        axis.set_zlim(low, high)
        axis.set_title(curves.panels[k], fontsize=10, y=0.97)
        axis.set_xlabel(_grid_label(curves), fontsize=8)
        axis.set_ylabel("base step", fontsize=8)
        axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        axis.tick_params(labelsize=7, pad=0)
        axis.view_init(elev=24, azim=-58)
        axis.set_box_aspect((1, 1.15, 0.8), zoom=0.9)
    _head(figure, title)
    figure.subplots_adjust(left=0.01, right=0.95, bottom=0.04, top=0.93, wspace=0.12)
    return figure


def against_known(curves: LossCurves, title: str = "") -> Figure:
    """The learned loss at the first and the last step beside handcrafted ones (`known.fits`)."""
    moments = {"first": 0, "last": -1} if len(curves.steps) > 1 else {"last": -1}
    fitted = {name: known.fits(curves, step) for name, step in moments.items()}
    panels = list(fitted["last"])
    columns = [(m, p) for p in panels for m in moments]
    figure = Figure(figsize=(3.6 * len(columns) + 0.3, 3.4), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=curves.classes is None)[0]
    for axis, (moment, panel) in zip(axes, columns, strict=True):
        step, k = moments[moment], curves.panels.index(panel)
        zero = curves.values[step, k, curves.reference]
        learned = curves.values[step, k] - zero
        axis.plot(curves.grid, learned, color=INK, lw=2.4, label="learned")
        for fit, style in zip(
            fitted[moment][panel], ("--", "-.", ":", (0, (6, 1.5))), strict=False
        ):
            axis.plot(curves.grid, fit.values - zero, ls=style, lw=1.4,
                      label=f"{fit.name} ($R^2$ {fit.r2:.2f})")  # fmt: skip
        axis.set_ylim(*limits([learned], margin=0.12))
        dress(axis, curves, k)
        axis.set_title(f"{panel}, step {curves.steps[step]:,}", fontsize=10)
        axis.legend(fontsize=7.5, frameon=False)
    axes[0].set_ylabel("learned loss, and a · known + b")
    _head(figure, title)
    return figure


def aligned(curves: LossCurves, k: int) -> np.ndarray:
    """The curves of a panel, each less its value at the reference prediction; [T, G]."""
    values = curves.values[:, k]
    return values - values[:, [curves.reference]]


def limits(parts: Sequence[np.ndarray], margin: float = 0.05) -> tuple[float, float]:
    """Limits that show nearly all of the values: single extremes are cut off."""
    values = np.concatenate([part[np.isfinite(part)] for part in parts])
    if not values.size:
        return 0.0, 1.0
    low, high = (float(q) for q in np.quantile(values, [0.002, 0.998]))
    if low == high:
        return low - 0.5, high + 0.5
    return low - margin * (high - low), high + margin * (high - low)


def dress(axis: Axes, curves: LossCurves, k: int, labels: bool = True) -> None:
    """What the axes of curves have in common."""
    axis.set_xlim(round(float(curves.grid[0]), 3), round(float(curves.grid[-1]), 3))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if curves.classes is None:
        axis.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
    elif k == len(curves.panels) - 1:
        axis.axvline(1 / curves.classes, color="0.5", linewidth=0.8, linestyle=":")  # chance
    if labels:
        axis.set_xlabel(_grid_label(curves))


def _grid_label(curves: LossCurves) -> str:
    return "error f(x) - y" if curves.classes is None else "predicted probability f(x)"


def _head(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=11)
