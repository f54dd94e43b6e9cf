"""One schedule after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, SequentialLR

from metaloss.base_optimizers.schedules.base import SCHEDULES, Steps, counted
from metaloss.errors import ArgumentError


@SCHEDULES.register("chain")
def chain(
    optimizer: Optimizer,
    steps: int,
    parts: Sequence[Callable[..., LRScheduler]],
    at: Sequence[Steps],
) -> LRScheduler:
    """One schedule after the other (torch's SequentialLR).

    Each is over its own stretch, and starts from the base optimizer's rate.

    Args:
        optimizer, steps: given by the run.
        parts: the schedules, in order; each is plain, without a `warm_up` of its own.
        at: where each but the first begins: base steps, or shares of all of them.
    """
    moments = [counted(moment, steps) for moment in at]
    if len(at) != len(parts) - 1:
        raise ArgumentError(
            "at", at, f"one moment fewer than parts, of which there are {len(parts)}"
        )
    if any(later <= earlier for earlier, later in pairwise([0, *moments])):
        raise ArgumentError(
            "at", at, "moments that rise, each a step at least after the one before"
        )
    ends = pairwise([0, *moments, max(steps, moments[-1] + 1) if moments else steps])
    made = [
        part(optimizer=optimizer, steps=end - begin)
        for part, (begin, end) in zip(parts, ends, strict=True)
    ]
    for part in made:
        if isinstance(part, (SequentialLR, ReduceLROnPlateau)):
            raise ArgumentError(
                "parts",
                type(part).__name__,
                "schedules that go by steps and are no chains: plateau stands alone, and a "
                "warm_up is a part, @schedules.warm_up",
            )
    return SequentialLR(optimizer, made, milestones=moments)
