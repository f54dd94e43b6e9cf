"""Loss curves: a learned loss as a function of the prediction, at chosen targets and steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from metaloss.export import Trajectory
from metaloss.representations.base import Representation


@dataclass(frozen=True)
class LossCurves:
    """`values[t, k, i]`: the loss of `grid[i]` at the target `targets[k]`, at step `steps[t]`."""

    steps: np.ndarray  #: [T]
    targets: tuple[float, ...]
    grid: np.ndarray  #: [G]
    values: np.ndarray  #: [T, K, G]
    classification: bool  #: whether predictions are probabilities and targets are 1 and 0


def sample(
    representation: Representation,
    trajectory: Trajectory,
    classification: bool,
    targets: Sequence[float] | None = None,
    points: int = 201,
) -> LossCurves:
    """The curves of every step of a trajectory.

    Args:
        representation: gives the form; its own parameters are left alone.
        trajectory: φ over the steps.
        classification: predictions then run over (0, 1) at the targets 1 and 0; in regression over
            [-1, 2] at the targets 0.1, 0.5 and 0.9, as targets are scaled to [0, 1].
        targets: others than these.
        points: of the grid.
    """
    if targets is None:
        targets = (1.0, 0.0) if classification else (0.1, 0.5, 0.9)
    grid = (
        torch.linspace(1e-4, 1 - 1e-4, points) if classification else torch.linspace(-1, 2, points)
    )
    model = copy.deepcopy(representation).cpu()
    values = torch.stack([_curves(model, phi, grid, targets) for phi in trajectory.phi])
    return LossCurves(
        trajectory.steps.numpy(), tuple(targets), grid.numpy(), values.numpy(), classification
    )


@torch.no_grad()
def _curves(model: nn.Module, phi: Tensor, grid: Tensor, targets: Sequence[float]) -> Tensor:
    """The curves of one φ, [K, G]."""
    if phi.numel():
        vector_to_parameters(phi, model.parameters())
    return torch.stack([model(grid[:, None], torch.full_like(grid, t)[:, None]) for t in targets])
