"""Up, down, and far down."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from metaloss.base_optimizers.schedules.base import SCHEDULES
from metaloss.config.arguments import Share


@SCHEDULES.register("one_cycle")
def one_cycle(
    optimizer: Optimizer,
    steps: int,
    rise: Share = 0.3,
    start: Annotated[float, Gt(1)] = 25.0,
    end: Annotated[float, Gt(1)] = 1e4,
    shape: Literal["cos", "linear"] = "cos",
) -> LRScheduler:
    """Rises to the base optimizer's rate, then falls far below its start (torch's OneCycleLR).

    Momentum stays as it is (Smith & Topin, 2018, cycle it too).

    Args:
        optimizer, steps: given by the run.
        rise: share of the training in which the rate rises.
        start: the first rate is the base optimizer's divided by this.
        end: the last rate is the first one divided by this.
        shape: of both ways.
    """
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=max(2, steps),
        pct_start=rise,
        anneal_strategy=shape,
        cycle_momentum=False,
        div_factor=start,
        final_div_factor=end,
    )
