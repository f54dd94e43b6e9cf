"""Momentum: the rule of descents that go along a running sum of their directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metaloss.meta_optimizers.descents.base import Group
from metaloss.meta_optimizers.descents.parts.bounded import Averages, Bounded


class Momentum(Bounded):
    """b ← μ b + d, p ← p - η b, along directions d.

    Args:
        groups: the meta-parameters.
        momentum: μ.
        bounds: the arguments of `Bounded`, in its order.
    """

    def __init__(self, groups: Sequence[Group], momentum: float, *bounds: Any) -> None:
        super().__init__(groups, *bounds)
        self._momentum = momentum
        self._means = Averages(self.groups)

    def rule(self, parameters: list[Tensor], lr: float, finite: Tensor) -> None:
        for p in parameters:
            direction, mean, usable = p.grad, self._means[p], finite.to(p.device)
            assert direction is not None
            moved = (mean * self._momentum).add_(direction)
            mean.copy_(torch.where(usable, moved, mean))
            p.copy_(torch.where(usable, p.add(moved, alpha=-lr), p))

    def rule_state(self) -> dict[str, Any]:
        return {"means": self._means.state()}

    def load_rule_state(self, state: dict[str, Any]) -> None:
        self._means.load(state["means"])
