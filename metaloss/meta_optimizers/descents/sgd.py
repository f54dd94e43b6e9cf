"""Stochastic gradient descent with momentum on the meta-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from metaloss.config.arguments import Decay, NonNegativeInt, PositiveFloat
from metaloss.meta_optimizers.descents.base import DESCENTS, Group
from metaloss.meta_optimizers.descents.parts.momentum import Momentum


@DESCENTS.register("sgd")
class SGD(Momentum):
    """`torch.optim.SGD`, bit for bit: b ← μ b + g, p ← p - η b.

    Unlike Adam's its step has the gradient's length, so η is of another size, and a meta-gradient
    that vanishes moves nothing.

    Args:
        groups: the meta-parameters.
        momentum: μ.
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
        momentum: Decay = 0.9,
        clip_norm: PositiveFloat | None = None,
        trust_radius: PositiveFloat | None = None,
        warm_up: NonNegativeInt = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__(
            groups, momentum, clip_norm, trust_radius, warm_up, schedule, schedule_steps
        )
