"""A factor at a few moments."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, counted, warmed_up
from metaloss.config.arguments import PositiveFloat


@SCHEDULES.register("steps")
def at_steps(
    optimizer: Optimizer,
    steps: int,
    at: Sequence[Steps] = (0.5, 0.75),
    gamma: PositiveFloat = 0.1,
    warm_up: Steps = 0,
) -> LRScheduler:
    """Multiplied by `gamma` at each of a few moments (torch's MultiStepLR).

    Args:
        optimizer, steps: given by the run.
        at: the moments, counted from the training's start: base steps, or shares of all of them,
            so that epochs 30 and 60 of 90 are (1/3, 2/3).
        gamma: the factor.
        warm_up: base steps, or their share, in which the rate first rises linearly.
    """
    rise = counted(warm_up, steps)
    moments = sorted(max(0, counted(moment, steps) - rise) for moment in at)
    return warmed_up(optimizer, steps, warm_up, lambda _: MultiStepLR(optimizer, moments, gamma))
