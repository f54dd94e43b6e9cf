"""The contract of schedules."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from metaloss.testing.base import require


def check_schedule(
    recipe: Callable[..., LRScheduler], steps: int = 12, **arguments: Any
) -> list[float]:
    """Holds a schedule to the contract in `metaloss.base_optimizers.schedules.base`.

    Args:
        recipe: called with an optimizer of two groups, and the steps.
        steps: of the training.
        arguments: of the recipe.

    Returns:
        The first group's rate in each base step, where the base optimizer's is 1.
    """
    optimizer, schedule = _make(recipe, steps, arguments)
    rates = [_rates(optimizer)]
    for step in range(1, steps):
        if step == steps // 2:
            optimizer, schedule = _restored(optimizer, schedule, recipe, steps, arguments)
            require(_rates(optimizer) == rates[-1], "has another rate after save and load")
        _advance(optimizer, schedule, 1.0)
        rates.append(_rates(optimizer))

    optimizer, schedule = _make(recipe, steps, arguments)
    for step in range(1, steps):
        _advance(optimizer, schedule, 1.0)
        require(_rates(optimizer) == rates[step], "goes on otherwise after save and load")
    for one, other in rates:
        require(math.isfinite(one) and one >= 0, f"gives the rate {one}")
        require(
            math.isclose(other, one / 10, rel_tol=1e-9, abs_tol=1e-15),
            f"gives groups of rates 1 and 0.1 those of {one} and {other}",
        )
    return [one for one, _ in rates]


def _make(
    recipe: Callable[..., LRScheduler], steps: int, arguments: dict[str, Any]
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    return optimizer, recipe(optimizer=optimizer, steps=steps, **arguments)


def _restored(
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    recipe: Callable[..., LRScheduler],
    steps: int,
    arguments: dict[str, Any],
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Another one that goes on from where this one stands."""
    saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    other, again = _make(recipe, steps, arguments)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    return other, again


def _advance(optimizer: torch.optim.Optimizer, schedule: LRScheduler, metric: float) -> None:
    optimizer.step()
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(metric)
    else:
        schedule.step()


def _rates(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    one, other = (float(group["lr"]) for group in optimizer.param_groups)
    return one, other
