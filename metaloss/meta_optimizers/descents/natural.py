"""Natural gradient on the meta-parameters: steps measured by what they do to the loss's slopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from metaloss.config.arguments import Decay, NonNegativeInt, PositiveFloat, PositiveInt
from metaloss.engines.parts.implicit import Dense, dot, plus
from metaloss.meta_optimizers.descents.base import DESCENTS, Group, JacobianDescent
from metaloss.meta_optimizers.descents.parts.momentum import Momentum
from metaloss.problem.jacobian import Jacobian


@DESCENTS.register("natural")
class Natural(Momentum, JacobianDescent):
    """b ← μ b + (F + λI)⁻¹ g, p ← p - η b, with F = JᵀJ of the slopes s = ∂ℓ/∂f, J = ∂s/∂φ.

    A base step knows the learned loss by its slopes at the pairs of its batch. ‖δ‖²_F = ‖Jδ‖² is
    how far a step δ of φ moves them, in the mean over the batch's rows: the Gauss-Newton metric of
    φ (Amari, 1998; Martens, 2020), the same step for every parametrisation of the same loss where λ
    is small. The system is solved by conjugate gradients, which see J by its products alone. Where
    a meta-step goes through several base steps, J is that of the first. A learned rate, which no
    slope knows, moves along its gradient.

    Args:
        groups: the meta-parameters.
        damping: λ, in units of F's curvature along the gradient, gᵀFg / gᵀg.
        iterations: of conjugate gradients; each costs two products with J.
        momentum: μ.
        clip_norm: (F + λI)⁻¹ g of a group is scaled down to at most this norm.
        trust_radius: a group stays within this distance of its start, in units of the start's
            norm; a step that would leave is projected back.
        warm_up: meta-steps over which the meta learning rate rises linearly from 0.
        schedule: how the meta learning rate falls from there to 0.
        schedule_steps: the meta-step at which it is 0; for "linear" and "cosine".
    """

    def __init__(
        self,
        groups: Sequence[Group],
        damping: PositiveFloat = 1e-2,
        iterations: PositiveInt = 10,
        momentum: Decay = 0.0,
        clip_norm: PositiveFloat | None = None,
        trust_radius: PositiveFloat | None = None,
        warm_up: NonNegativeInt = 0,
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        schedule_steps: int | None = None,
    ) -> None:
        super().__init__(
            groups, momentum, clip_norm, trust_radius, warm_up, schedule, schedule_steps
        )
        self._damping = damping
        self._iterations = iterations

    def descend(
        self, gradients: Sequence[Tensor | None], finite: Tensor, jacobian: Jacobian | None = None
    ) -> None:
        directions = list(gradients)
        if jacobian is not None:
            phi = self.groups[0]
            given = directions[: len(phi)]
            solved = self._solve(
                jacobian,
                [torch.zeros_like(p) if g is None else g for p, g in zip(phi, given, strict=True)],
            )
            finite = finite & torch.stack([d.isfinite().all() for d in solved]).all()
            directions[: len(phi)] = [
                None if g is None else d for d, g in zip(solved, given, strict=True)
            ]
        super().descend(directions, finite)

    def branch(self) -> None:
        """No CUDA graph holds a pass on the side, whose graph of operations is kept."""

    @torch.no_grad()
    def _solve(self, jacobian: Jacobian, g: Dense) -> Dense:
        """(F + λI)⁻¹ g by conjugate gradients from 0; nothing waits for a device."""
        x: Dense = [torch.zeros_like(part) for part in g]
        r = p = g
        rr = dot(r, r)
        damping = torch.zeros_like(rr)
        for i in range(self._iterations):
            moved: Dense = jacobian.gram(p)
            if i == 0:  # p is g itself
                damping = self._damping * _ratio(dot(p, moved), rr)
            moved = plus(moved, damping, p)
            length = _ratio(rr, dot(p, moved))
            x = plus(x, length, p)
            r = plus(r, -length, moved)
            before, rr = rr, dot(r, r)
            p = plus(r, _ratio(rr, before), p)
        return x


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a/b; 0 where b is, since the system is solved there."""
    return torch.where(b == 0, torch.zeros_like(a), a / b)
