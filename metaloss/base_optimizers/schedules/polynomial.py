"""A power of what is left of the training; the first power is a straight line to 0."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, warmed_up
from metaloss.config.arguments import PositiveFloat


@SCHEDULES.register("polynomial")
def polynomial(
    optimizer: Optimizer, steps: int, warm_up: Steps = 0, power: PositiveFloat = 1.0
) -> LRScheduler:
    """Falls to 0 as a power of what is left of the training (torch's PolynomialLR).

    Args:
        optimizer, steps: given by the run.
        warm_up: base steps, or their share, in which the rate first rises linearly.
        power: 1 is a straight line.
    """
    return warmed_up(
        optimizer, steps, warm_up, lambda length: PolynomialLR(optimizer, max(1, length), power)
    )
