"""Handcrafted losses beside a learned one, each after the affine fit that serves it best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metaloss.analysis.curves import LossCurves

SMOOTHING = 0.1  #: ε of label smoothing (Szegedy et al., 2016)
FOCUS = 2.0  #: γ of the focal loss (Lin et al., 2017)


@dataclass(frozen=True)
class Fit:
    """A handcrafted loss after the fit to the learned loss."""

    name: str
    values: np.ndarray  #: [G]
    scale: float  #: a
    r2: float  #: share of the learned loss's variance over the grid that the fit explains


def fits(curves: LossCurves, step: int = -1) -> dict[str, list[Fit]]:
    """Each panel's handcrafted losses K, as a·K + b with a and b by least squares over the grid.

    A constant acts on no θ, and the scale is a learning rate; what is left to compare is the shape.
    In classification only an example's loss is compared: part of a single output's slope is without
    effect (see `LossCurves`).

    Args:
        curves: of the learned loss.
        step: index of the step.

    Returns:
        By panel: cross-entropy, label smoothing, focal loss and squared error on an example's
        probability, or squared error, absolute error and log-cosh of an error.
    """
    names = curves.panels if curves.classes is None else curves.panels[-1:]
    grid = curves.grid.astype(np.float64)
    known = _of_error(grid) if curves.classes is None else _of_probability(grid, curves.classes)
    return {
        panel: [_fit(name, values, learned) for name, values in known.items()]
        for panel, learned in zip(names, curves.values[step, -len(names) :], strict=True)
    }


def _of_probability(p: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Losses of an example whose target has the probability p and whose others share the rest."""
    rest = (1 - p) / (classes - 1)
    smooth = SMOOTHING / classes  # of each output's target, the rest being the true class's
    others = (classes - 1) * smooth
    return {
        "cross-entropy": -np.log(p),
        f"label smoothing {SMOOTHING:g}": -(1 - others) * np.log(p) - others * np.log(rest),
        f"focal, γ = {FOCUS:g}": -((1 - p) ** FOCUS) * np.log(p),
        "squared error": ((1 - p) ** 2 + (classes - 1) * rest**2) / classes,
    }


def _of_error(error: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "squared error": error**2,
        "absolute error": np.abs(error),
        "log-cosh": np.log(np.cosh(error)),
    }


def _fit(name: str, known: np.ndarray, learned: np.ndarray) -> Fit:
    learned = learned.astype(np.float64)
    design = np.stack([known, np.ones_like(known)], axis=1)
    (scale, constant), *_ = np.linalg.lstsq(design, learned, rcond=None)
    values = scale * known + constant
    spread = np.square(learned - learned.mean()).sum()
    r2 = 1 - np.square(learned - values).sum() / spread if spread > 0 else float("nan")
    return Fit(name, values, float(scale), float(r2))
