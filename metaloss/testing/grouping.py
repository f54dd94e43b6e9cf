"""The contract of groupings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from metaloss.base_optimizers.groupings.base import Groups
from metaloss.testing.base import require


def check_grouping(recipe: Callable[..., Groups], model: nn.Module, **arguments: Any) -> None:
    """Holds a grouping to the contract in `metaloss.base_optimizers.groupings.base`.

    Args:
        recipe: the function.
        model: one that it takes.
        arguments: further arguments.
    """
    groups = recipe(model=model, **arguments)
    held = [parameter for group in groups for parameter in group["params"]]
    require(len(set(held)) == len(held), "a parameter is in two groups")
    require(set(held) == set(model.parameters()), "the groups do not hold the model's parameters")
    require(all(group["params"] for group in groups), "a group is empty")
    scales = [group.get("lr_scale", 1.0) for group in groups]
    require(all(scale > 0 for scale in scales), f"lr_scale is {min(scales)}, not above 0")
    torch.optim.AdamW(groups, lr=0.1)
