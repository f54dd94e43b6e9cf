"""The same factor at every step."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, warmed_up
from metaloss.config.arguments import Share


@SCHEDULES.register("exponential")
def exponential(
    optimizer: Optimizer, steps: int, warm_up: Steps = 0, least: Share = 0.01
) -> LRScheduler:
    """Falls by the same factor at every step, to `least` at the end (torch's ExponentialLR).

    Args:
        optimizer, steps: given by the run.
        warm_up: base steps, or their share, in which the rate first rises linearly.
        least: the rate at the end, as a share of the base optimizer's.
    """
    return warmed_up(
        optimizer,
        steps,
        warm_up,
        lambda length: ExponentialLR(optimizer, least ** (1 / max(1, length))),
    )
