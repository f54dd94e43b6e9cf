"""The paper's figures of the loss network: its activation (6), and the flatness it avoids (5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from metaloss.analysis.curves import LossCurves
from metaloss.analysis.indices import felt, near_zero
from metaloss.analysis.loss_figures import COLOURS, INK, aligned, dress, limits


def smooth_leaky_relu(x: np.ndarray, gamma: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative (paper, eqs. 18 and 25)."""
    sigmoid = 0.5 * (1 + np.tanh(0.5 * beta * x))  # e^βx / (e^βx + 1), without overflow
    value = np.logaddexp(0, beta * x) / beta * (1 - gamma) + gamma * x
    return value, sigmoid + gamma * (1 - sigmoid)


def activation(
    gammas: Sequence[float] = (0.0, 0.01, 0.1, 0.25, 0.5),
    betas: Sequence[float] = (1.0, 2.0, 5.0, 10.0, 50.0),
    gamma: float = 0.01,
    beta: float = 10.0,
) -> Figure:
    """The smooth leaky ReLU and its derivative for shifted γ and β (paper, Figure 6).

    Args:
        gammas: shown at the given beta, in (a) and (b).
        betas: shown at the given gamma, in (c) and (d).
        gamma, beta: shown beside the smooth and the leaky ReLU in (e), with the leak 0.1 and β 2 so
            that the three can be told apart.
    """
    x = np.linspace(-2, 2, 401)
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    axes = figure.subplots(1, 5)
    by_gamma = [(rf"$\gamma$ = {g:g}", *smooth_leaky_relu(x, g, beta)) for g in gammas]
    by_beta = [(rf"$\beta$ = {b:g}", *smooth_leaky_relu(x, gamma, b)) for b in betas]
    for pair, lines in ((axes[:2], by_gamma), (axes[2:4], by_beta)):
        for i, (label, value, slope) in enumerate(lines):
            shade = COLOURS(i / len(lines))
            pair[0].plot(x, value, color=shade, label=label)
            pair[1].plot(x, slope, color=shade, label=label)
    axes[4].plot(x, np.logaddexp(0, 2 * x) / 2, "--", label=r"smooth ReLU, $\beta$ = 2 (eq. 17)")
    axes[4].plot(x, np.where(x > 0, x, 0.1 * x), ":", label=r"leaky ReLU, $\gamma$ = 0.1 (eq. 15)")
    axes[4].plot(x, smooth_leaky_relu(x, 0.1, 2.0)[0], color=INK, label="smooth leaky ReLU")
    titles = (
        rf"(a) activation, $\beta$ = {beta:g}",
        r"(b) its derivative",
        rf"(c) activation, $\gamma$ = {gamma:g}",
        r"(d) its derivative",
        "(e) beside its parents",
    )
    for axis, heading in zip(axes, titles, strict=True):
        axis.set_title(heading, fontsize=10)
        axis.set_xlim(-2, 2)
        axis.set_xlabel("x")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7.5, frameon=False)
    return figure


def flat_losses(losses: Sequence[LossCurves], names: Sequence[str] = ()) -> Figure:
    """Learned losses at their last step, the flat parts marked (paper, Figure 5).

    Args:
        losses: a panel each; in classification the curves y = 1 and y = 0, else all targets.
        names: of the losses.
    """
    figure = Figure(figsize=(3.3 * len(losses) + 0.2, 3.0), layout="constrained")
    axes = figure.subplots(1, len(losses), squeeze=False)[0]
    for i, (axis, curves) in enumerate(zip(axes, losses, strict=True)):
        shown = range(len(curves.panels) - (curves.classes is not None))
        flat = near_zero(felt(curves)[list(shown)])
        for k, style in zip(shown, ("-", "--", ":") * len(shown), strict=False):
            values = aligned(curves, k)[-1]
            axis.plot(curves.grid, values, style, color=INK, lw=1.3, label=curves.panels[k])
            axis.plot(curves.grid, np.where(flat[k], values, np.nan), color="C1", lw=5, alpha=0.5)
        axis.set_ylim(*limits([aligned(curves, k)[-1:] for k in shown], margin=0.1))
        name = f"{names[i]}: " if i < len(names) else ""
        axis.set_title(f"{name}flat on {flat.mean():.0%}", fontsize=10)
        dress(axis, curves, 0)
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("learned loss")
    return figure
