"""RMSprop on the meta-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.config.arguments import Decay, NonNegativeInt, PositiveFloat
from metaloss.meta_optimizers.descents.base import DESCENTS, Group
from metaloss.meta_optimizers.descents.parts.bounded import Averages, Bounded


@DESCENTS.register("rmsprop")
class RMSprop(Bounded):
    """`torch.optim.RMSprop`, bit for bit: v ← α v + (1 - α) g², p ← p - η g / (√v + ε).

    Args:
        groups: the meta-parameters.
        alpha: α.
        eps: ε.
        clip_norm: the gradient of a group is scaled down to at most this norm.
        trust_radius: a group stays within this distance of its start, in units of the start's
            norm; a step that would leave is projected back.
        warm_up: meta-steps over which the meta learning rate rises linearly from 0.
        schedule: how the meta learning rate falls from there to 0.
        schedule_steps: the meta-step at which it is 0; for "linear" and "cosine".
    """

    def __init__(
        self,
        groups: Sequence[Group],
        alpha: Decay = 0.99,
        eps: PositiveFloat = 1e-8,
        clip_norm: PositiveFloat | None = None,
        trust_radius: PositiveFloat | None = None,
        warm_up: NonNegativeInt = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__(groups, clip_norm, trust_radius, warm_up, schedule, schedule_steps)
        self._alpha = alpha
        self._eps = eps
        self._squares = Averages(self.groups)

    def rule(self, parameters: list[Tensor], lr: float, finite: Tensor) -> None:
        for p in parameters:
            gradient, square, usable = p.grad, self._squares[p], finite.to(p.device)
            assert gradient is not None
            moved = (square * self._alpha).addcmul_(gradient, gradient, value=1 - self._alpha)
            square.copy_(torch.where(usable, moved, square))
            step = p.addcdiv(gradient, moved.sqrt().add_(self._eps), value=-lr)
            p.copy_(torch.where(usable, step, p))

    def rule_state(self) -> dict[str, Any]:
        return {"squares": self._squares.state()}

    def load_rule_state(self, state: dict[str, Any]) -> None:
        self._squares.load(state["squares"])
