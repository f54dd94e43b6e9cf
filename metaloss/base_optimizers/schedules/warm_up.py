"""A linear rise to the whole rate, which then stays."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, counted, rising


@SCHEDULES.register("warm_up")
def warm_up(optimizer: Optimizer, steps: int, length: Steps | None = None) -> LRScheduler:
    """Rises linearly to the base optimizer's rate, and stays there (torch's LinearLR).

    Args:
        optimizer, steps: given by the run.
        length: base steps of the rise, or their share; None: all, as in a chain.
    """
    return rising(optimizer, steps if length is None else counted(length, steps))
