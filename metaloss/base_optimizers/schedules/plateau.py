"""A factor whenever the validation metric has stopped falling."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metaloss.base_optimizers.schedules.base import SCHEDULES
from metaloss.config.arguments import NonNegativeFloat, NonNegativeInt, Share


@SCHEDULES.register("plateau")
def plateau(
    optimizer: Optimizer,
    steps: int,
    factor: Share = 0.1,
    patience: NonNegativeInt = 10,
    threshold: NonNegativeFloat = 1e-4,
    cooldown: NonNegativeInt = 0,
    least: NonNegativeFloat = 0.0,
) -> LRScheduler:
    """Multiplied by `factor` when evaluations no longer improve (torch's ReduceLROnPlateau).

    An evaluation, every `Runner.evaluate_every` base steps, counts by its metric on the validation
    split (lower is better).

    Args:
        optimizer, steps: given by the run.
        factor: what a rate is multiplied by.
        patience: evaluations without improvement that are borne.
        threshold: a metric has to be lower than this share below the best one to improve on it.
        cooldown: evaluations after a reduction that are not counted.
        least: no rate falls below it.
    """
    return ReduceLROnPlateau(
        optimizer,
        factor=factor,
        patience=patience,
        threshold=threshold,
        cooldown=cooldown,
        min_lr=least,
        eps=0.0,  # torch leaves small rates, as of layers near the input, as they are
    )
