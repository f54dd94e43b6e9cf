"""The same rate throughout."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from metaloss.base_optimizers.schedules.base import SCHEDULES
from metaloss.config.arguments import Probability


@SCHEDULES.register("constant")
def constant(optimizer: Optimizer, steps: int, factor: Probability = 1.0) -> LRScheduler:
    """The base optimizer's rate, or a part of it: what a chain may need (torch's ConstantLR).

    Args:
        optimizer, steps: given by the run.
        factor: the part.
    """
    return ConstantLR(optimizer, factor, max(1, steps))
