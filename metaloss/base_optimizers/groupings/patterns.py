"""Rates by patterns of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from metaloss.base_optimizers.groupings.base import GROUPINGS, Groups
from metaloss.config.arguments import PositiveFloat
from metaloss.errors import ArgumentError, did_you_mean


@GROUPINGS.register("patterns")
def patterns(
    model: nn.Module,
    rates: Mapping[str, PositiveFloat] | None = None,
    no_decay: Sequence[str] = (),
) -> Groups:
    """Rates, and no weight decay, by patterns of parameters' names.

    Args:
        rates: by pattern, multiples of the optimizer's learning rate; the last that matches holds,
            and 1 where none does.
        no_decay: patterns of parameters without weight decay.
    """
    rates = rates or {}
    names = [name for name, _ in model.named_parameters()]
    for argument, asked in (("rates", rates), ("no_decay", no_decay)):
        for pattern in asked:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = did_you_mean(pattern, names)
                raise ArgumentError(argument, pattern, f"a pattern of its parameters{near}")
    groups: dict[tuple[float, bool], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        scale = ([1.0] + [rate for p, rate in rates.items() if fnmatchcase(name, p)])[-1]
        without = any(fnmatchcase(name, pattern) for pattern in no_decay)
        own = {"weight_decay": 0.0} if without else {}
        group = groups.setdefault((scale, without), {"params": [], "lr_scale": scale, **own})
        group["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())
