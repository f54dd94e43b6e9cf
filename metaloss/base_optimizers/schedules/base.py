"""What a schedule is: a recipe of a torch.optim scheduler, over a training of so many steps."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR

from metaloss.config.arguments import NonNegativeInt, Share
from metaloss.config.registry import Registry

#: Recipes `(optimizer, steps, ...) -> LRScheduler`. The optimizer is a stand-in that has the
#: rates of the run's own, group by group, and no parameters of its model: what a schedule makes of
#: its rates, the run does to its own. `steps` are the base steps that the schedule is over. The
#: run calls the scheduler's `step()` after each base step but the last; of a `ReduceLROnPlateau`
#: its `step(metric)` after each evaluation.
#:
#: Contract, held by `metaloss.testing.check_schedule`: rates are finite and not negative over all
#: steps; groups of other rates keep their proportion; saved and loaded, it goes on alike.
SCHEDULES = Registry("schedules", LRScheduler, supplied=("optimizer", "steps"))

#: A length or a moment: base steps, or a share of all of them.
Steps = NonNegativeInt | Share


def counted(length: Steps, steps: int) -> int:
    """Base steps of a length, where the whole has `steps`."""
    return length if isinstance(length, int) else round(length * steps)


def rising(optimizer: Optimizer, steps: int) -> LinearLR:
    """From 1/(steps + 1) of the rates linearly to all of them, after so many steps."""
    return LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=max(1, steps))


def warmed_up(
    optimizer: Optimizer,
    steps: int,
    warm_up: Steps,
    made: Callable[[int], LRScheduler],
) -> LRScheduler:
    """A schedule with a linear rise before it.

    Args:
        optimizer: the stand-in.
        steps: of both together.
        warm_up: how long the rise takes; 0: there is none.
        made: makes the schedule, over so many steps.
    """
    rise = counted(warm_up, steps)
    if rise == 0:
        return made(steps)
    parts = [rising(optimizer, rise), made(max(1, steps - rise))]
    return SequentialLR(optimizer, parts, milestones=[rise])
