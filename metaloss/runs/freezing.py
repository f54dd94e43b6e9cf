"""Freezing: which parameters are trained at a step, by patterns of their names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from metaloss.errors import ArgumentError, did_you_mean


class Freezing:
    """Parameters that are frozen until a base step of the training, or for good.

    What is frozen has no gradient, and the optimizer leaves it as it is; BatchNorm's running means
    still move. The initialisation trains what the first step does.

    Args:
        model: whose parameters they are.
        until: by pattern, the base steps before a parameter is trained; None: it never is. The last
            pattern that matches holds, and 0 where none does.

    Raises:
        ArgumentError: a pattern matches no parameter, or no parameter is left to train.
    """

    def __init__(self, model: nn.Module, until: Mapping[str, int | None]) -> None:
        names = [name for name, _ in model.named_parameters()]
        for pattern in until:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = did_you_mean(pattern, names)
                asked = f"patterns of the model's parameters{near} · {pattern} matches none"
                raise ArgumentError("frozen_until", dict(until), asked)
        self._begins = [
            (p, _last(name, until)) for name, p in model.named_parameters() if p.requires_grad
        ]
        if until and not any(begin == 0 for _, begin in self._begins):
            asked = "some parameter that is trained from step 0, as {'*': 500, 'fc.*': 0}"
            raise ArgumentError("frozen_until", dict(until), asked)
        self.steps = {int(begin) for _, begin in self._begins if 0 < begin < math.inf}

    def apply(self, step: int) -> None:
        """Sets what is trained in the step after so many."""
        for parameter, begin in self._begins:
            parameter.requires_grad_(step >= begin)


def _last(name: str, until: Mapping[str, int | None]) -> float:
    """The first step in which a parameter is trained."""
    found = [steps for pattern, steps in until.items() if fnmatchcase(name, pattern)] or [0]
    return math.inf if found[-1] is None else found[-1]
