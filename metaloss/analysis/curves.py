"""Loss curves: a learned loss as a function of the prediction, panel by panel, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from metaloss.representations.base import Representation
from metaloss.representations.saved.trajectory import Trajectory

TARGETS = (0.1, 0.5, 0.9)  #: of regression, where targets are scaled to [0, 1]


@dataclass(frozen=True)
class LossCurves:
    """`values[t, k, i]`: the loss of panel k at `grid[i]`, at base step `steps[t]`.

    In classification the grid is the predicted probability, and the panels are the loss of one
    output whose target is 1, that of one output whose target is 0, and the loss of an *example*:
    the target's output has the probability p, and the others share the rest, (1 - p)/(C - 1) each.
    Softmax probabilities sum to 1, so a slope that the first two panels have in common acts on no
    θ; it cancels in the third, which is what training feels. In regression the grid is the error
    f(x) - y, and there is a panel for each of a few targets y.
    """

    steps: np.ndarray  #: [T]
    panels: tuple[str, ...]  #: names of the K panels
    grid: np.ndarray  #: [G]
    values: np.ndarray  #: [T, K, G]
    slopes: np.ndarray  #: [T, K, G], derivatives by the grid
    classes: int | None  #: C; None in regression

    @property
    def reference(self) -> int:
        """Where figures put each curve's zero: at the probability 0.5, or at no error.

        A constant acts on no θ (the scale does, so it stays; paper, section 5.5).
        """
        return int(np.abs(self.grid - (0.0 if self.classes is None else 0.5)).argmin())


def sample(
    representation: Representation,
    trajectory: Trajectory,
    classes: int | None,
    points: int = 201,
    targets: Sequence[float] = TARGETS,
) -> LossCurves:
    """The curves of every step of a trajectory.

    Args:
        representation: gives the form; its own parameters are left alone.
        trajectory: φ over the steps.
        classes: C; None for regression.
        points: of the grid, over (0, 1) in classification and over [-1, 1] in regression.
        targets: of regression.
    """
    grid, seen = grid_of(classes, points), panels(classes, targets)
    model = copy.deepcopy(representation).cpu().float().requires_grad_(False)
    values = np.empty((len(trajectory.steps), len(seen), points), np.float32)
    slopes = np.empty_like(values)
    for t, phi in enumerate(trajectory.phi):
        if phi.numel():
            vector_to_parameters(phi.float(), model.parameters())
        model.observe(int(trajectory.steps[t]), None)
        for k, panel in enumerate(seen.values()):
            values[t, k], slopes[t, k] = curve(model, panel, grid)
    steps = trajectory.steps.numpy()
    return LossCurves(steps, tuple(seen), grid.numpy(), values, slopes, classes)


#: A panel: what the loss sees for a grid [G], (prediction, target), both [G, C].
Panel = Callable[[Tensor], tuple[Tensor, Tensor]]


def grid_of(classes: int | None, points: int) -> Tensor:
    """The grid, [points]: probabilities in classification, errors in regression."""
    if classes is not None:
        return torch.linspace(1e-4, 1 - 1e-4, points)
    return torch.linspace(-1, 1, points)


def panels(classes: int | None, targets: Sequence[float] = TARGETS) -> dict[str, Panel]:
    """What a loss is looked at on, by name; see `LossCurves`."""
    if classes is None:
        return {f"y = {target:g}": _error(target) for target in targets}
    return {
        "y = 1": _output(1.0),
        "y = 0": _output(0.0),
        f"an example of {classes} classes": _example(classes),
    }


def _output(target: float) -> Panel:
    return lambda grid: (grid[:, None], torch.full_like(grid, target)[:, None])


def _error(target: float) -> Panel:
    return lambda grid: (grid[:, None] + target, torch.full_like(grid, target)[:, None])


def _example(classes: int) -> Panel:
    def see(grid: Tensor) -> tuple[Tensor, Tensor]:
        rest = ((1 - grid) / (classes - 1))[:, None].expand(-1, classes - 1)
        prediction = torch.cat([grid[:, None], rest], dim=1)
        target = torch.zeros_like(prediction)
        target[:, 0] = 1
        return prediction, target

    return see


def curve(model: nn.Module, panel: Panel, grid: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes of one φ in one panel, [G] each."""
    grid = grid.clone().requires_grad_()
    loss = model(*panel(grid))
    (slope,) = torch.autograd.grad(loss.sum(), grid, materialize_grads=True)
    return loss.detach().numpy(), slope.numpy()
