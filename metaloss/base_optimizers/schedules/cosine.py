"""Half a cosine, from the whole rate to the least."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, warmed_up
from metaloss.config.arguments import Decay


@SCHEDULES.register("cosine")
def cosine(optimizer: Optimizer, steps: int, warm_up: Steps = 0, least: Decay = 0.0) -> LRScheduler:
    """Falls along half a cosine to `least` (Loshchilov & Hutter, 2017; torch's LambdaLR).

    torch's CosineAnnealingLR has one least rate for all parameter groups; here it is a share of
    each.

    Args:
        optimizer, steps: given by the run.
        warm_up: base steps, or their share, in which the rate first rises linearly.
        least: the rate at the end, as a share of the base optimizer's.
    """

    def made(length: int) -> LRScheduler:
        def factor(step: int) -> float:
            share = min(1.0, step / max(1, length))
            return least + (1 - least) * (1 + math.cos(math.pi * share)) / 2

        return LambdaLR(optimizer, factor)

    return warmed_up(optimizer, steps, warm_up, made)
