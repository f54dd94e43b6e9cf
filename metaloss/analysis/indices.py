"""Indices: what the shape of a learned loss says about the training, in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from metaloss.analysis.curves import LossCurves
from metaloss.links import TaskLoss
from metaloss.representations.saved.learned_loss import LearnedLoss

#: A slope is near zero below this part of the mean absolute slope.
NEAR_ZERO = 0.05

#: What each index is called in figures, and the paper's reading of it.
MEANINGS = {
    "scale": "scale: mean slope",
    "flatness": "flatness: share of the model's predictions without slope",
    "flat_range": "share of the range without slope",
    "argmin": "prediction of least loss",
    "wrong_slope": "share of slope away from the target",
    "turns": "turning points of the loss",
    "phi_distance": "distance of φ from its start",
    "effective_base_lr": "effective base learning rate",
    "base_lr": "base learning rate",
    "cosine_theta": "cosine with the task loss's gradient by θ",
    "ratio_theta": "norm of the gradient by θ, in the task loss's",
}


def of_curves(curves: LossCurves, predictions: np.ndarray | None = None) -> dict[str, float]:
    """Indices of the latest step's curves, on the slope that training feels (`felt`).

    In classification they are taken of an example's loss, since a slope that the panels y = 1 and
    y = 0 share is without effect; in regression over all targets.

    Args:
        curves: of the loss.
        predictions: where a model stands, as the grid counts: the probabilities of the true class,
            or the errors, [n]. None: the whole grid, and no "flatness".

    Returns:
        "scale": mean absolute slope at the predictions: the implicit learning rate (paper,
            section 5.5).
        "flatness": share of the predictions at which the slope is near zero, 1 where the loss is
            constant: the implicit early stopping (section 5.6).
        "flat_range": the same of the grid: a property of the loss alone.
        "argmin": the prediction of least loss. In classification a probability; below 1 the loss
            rises again on confident examples: the implicit label smoothing (section 5.7). In
            regression an error, the mean over the targets; not 0 is an implicit bias.
        "wrong_slope": share of the grid on which an example is pushed away from the target.
        "turns": turning points beyond those of a monotone loss (classification) or of a valley
            (regression); the most of any panel.
    """
    classification = curves.classes is not None
    chosen = slice(-1, None) if classification else slice(None)
    slopes, values = felt(curves)[chosen], curves.values[-1, chosen]
    away = slopes if classification else -slopes * np.sign(curves.grid)
    small = near_zero(slopes)
    turns = [_sign_changes(slope[~flat]) for slope, flat in zip(slopes, small, strict=True)]
    numbers = {"scale": float(np.abs(slopes).mean())}
    if predictions is not None:
        at = _nearest(curves.grid, predictions)
        numbers = {
            "scale": float(np.abs(slopes[:, at]).mean()),
            "flatness": float(small[:, at].mean()),
        }
    return {
        **numbers,
        "flat_range": float(small.mean()),
        "argmin": float(curves.grid[values.argmin(-1)].mean()),
        "wrong_slope": float(((away > 0) & ~small).mean()),
        "turns": float(max(turns) if classification else max(max(turns) - 1, 0)),
    }


def felt(curves: LossCurves) -> np.ndarray:
    """The slopes of the latest step that training feels, [K, G].

    By the logit in classification, p(1 - p) dM/dp: a probability near 0 or 1 hardly moves however
    steep the loss is there. Cross-entropy's is p - 1. In regression by the output itself.
    """
    slopes = curves.slopes[-1]
    return slopes if curves.classes is None else slopes * curves.grid * (1 - curves.grid)


def _nearest(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The grid's index that is nearest to each value; the grid is even."""
    places = (values - grid[0]) / (grid[-1] - grid[0]) * (len(grid) - 1)
    return np.clip(np.nan_to_num(places), 0, len(grid) - 1).round().astype(int)


def near_zero(slopes: np.ndarray) -> np.ndarray:
    """Where the slopes are below 5 % of their mean absolute value; everywhere if all are 0."""
    return np.abs(slopes) <= NEAR_ZERO * np.abs(slopes).mean()


def effective_base_lr(
    loss: LearnedLoss,
    task_loss: TaskLoss,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    base_lr: float,
) -> float:
    """The learning rate at which a step on the task loss comes nearest to one on the learned loss.

    Nearest in the outputs z: with g = ∂M_φ/∂z and h = ∂L_T/∂z, the α' that makes α'h least far from
    αg, α' = α⟨g, h⟩/⟨h, h⟩ (paper, section 5.5: θ - α∇L_T ≈ θ - ∇M_φ). Negative where the learned
    loss works against the task loss. Of a trained model it is a statement on the few wrong
    examples, whose h is large. Without momentum and the like, which act on both.

    Args:
        loss: the learned loss with its link.
        task_loss: L_T.
        outputs: z of some examples, [n, C].
        labels: theirs.
        base_lr: α.
    """
    z = outputs.detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(z, labels), z, materialize_grads=True)
    (h,) = torch.autograd.grad(task_loss(z, labels), z)
    return base_lr * float((g.double() * h.double()).sum() / h.double().square().sum())


def warnings(numbers: Mapping[str, Any]) -> list[str]:
    """What a reader of the loss should know first, a clause each.

    Args:
        numbers: indices by name; those that are missing or null are passed over.
    """
    wrong, turns = numbers.get("wrong_slope") or 0.0, numbers.get("turns") or 0.0
    found = []
    if numbers.get("scale") == 0:
        found.append("the loss is constant: it moves no parameter")
    elif (numbers.get("flat_range") or 0.0) > 0.5:
        found.append(f"flat on {numbers['flat_range']:.0%} of the range of predictions")
    if turns:
        found.append(f"not monotone: away from the target on {wrong:.0%} of the predictions")
    elif wrong > 0.4:
        found.append(f"negative slope: away from the target on {wrong:.0%} of the predictions")
    # Not by `effective_base_lr`: of a trained model it is of the few wrong examples, where a loss
    # that works may well step less far than the task loss, or the other way.
    if (numbers.get("cosine_theta") or 0.0) < 0:
        found.append("works against the task loss: their gradients by the parameters are opposed")
    return found


def _sign_changes(slope: np.ndarray) -> int:
    signs = np.sign(slope)
    return int((signs[1:] != signs[:-1]).sum())
